"""The rungs as ways to start a command: each puts its protections around a Python module in a room."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, Self

import psutil

from farm_client.sandbox import bubblewrap, podman
from farm_client.sandbox.inside import ALONE, IN_NAMESPACES, Inside
from farm_client.sandbox.policy import Bounds, SandboxPolicy, VisibleFiles
from farm_client.sandbox.protection import ALL, Protection
from farm_client.sandbox.room import Room
from farm_client.sandbox.words import in_words
from protocol.sandbox import Rung

LIFELINE: Final = "farm_client.sandbox.lifeline"
KEEPER: Final = "farm_client.sandbox.container"
_ONLY_IN_NAMESPACES: Final = frozenset(
    {Protection.HOST_NAME, Protection.CGROUPS, Protection.SIZED_TMP, Protection.SIZED_SHM}
)
"""What is hidden there, and folders of the sandbox's own that Landlock gives no access to."""
_SIGNALLED: Final = 128
_NOBODY: Final = 0
"""In the place of the agent's process id: bubblewrap ends the namespace with the agent."""
_HARMLESS_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NOTHING: Final = SandboxPolicy(VisibleFiles())


class Confinement(Protocol):
    """One way to start a Python module. ``rung`` says which protections are around it then."""

    @property
    def rung(self) -> Rung:
        """The rung of the ladder."""

    @property
    def policy(self) -> SandboxPolicy:
        """What may be seen and used."""

    @property
    def by(self) -> str:
        """The program that makes it, if it is one."""

    @property
    def not_claimed(self) -> frozenset[Protection]:
        """What this rung does not do."""

    @property
    def only_measured(self) -> frozenset[Protection]:
        """The bounds that the kernel does not hold: the agent measures, and ends what is over."""

    def command(self, room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command that runs a module in a room, and ends with this process.

        ``keep``: descriptors that it inherits beside the standard ones.
        """

    def own_exit_code(self, exit_code: int) -> int:
        """Return the module's exit code, negative for a signal, from that of the process that was started for it."""

    def within(self, bounds: Bounds) -> Confinement:
        """Return the same with other bounds."""

    def seeing(self, devices: tuple[Path, ...]) -> Confinement:
        """Return the same with the nodes of other accelerators."""

    def reading(self, folder: Path) -> Confinement:
        """Return the same with one more folder that can be read."""


@dataclass(frozen=True, slots=True)
class Unconfined:
    """No sandbox: a process of the volunteer's user, which ends with the agent."""

    policy: SandboxPolicy = _NOTHING
    rung: Rung = Rung.NONE
    by: str = ""
    not_claimed: frozenset[Protection] = ALL
    only_measured: frozenset[Protection] = frozenset()

    def own_exit_code(self, exit_code: int) -> int:
        """Return it: the process is the module's."""
        return exit_code

    def within(self, bounds: Bounds) -> Unconfined:
        """Return the same: there are no bounds."""
        return self

    def seeing(self, _devices: tuple[Path, ...]) -> Unconfined:
        """Return the same: it sees all."""
        return self

    def reading(self, folder: Path) -> Unconfined:
        """Return the same: it sees all."""
        return self

    def command(self, _room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command."""
        return _python(os.getpid(), Inside(keep=keep), module, arguments)


UNCONFINED: Final = Unconfined()


class _ByTheKernel:
    """What the rungs have alike that the kernel holds."""

    __slots__ = ()
    policy: SandboxPolicy

    @property
    def only_measured(self) -> frozenset[Protection]:
        """Return the bounds that the kernel does not hold."""
        return _only_measured(self.policy.bounds)

    def own_exit_code(self, exit_code: int) -> int:
        """Return that of the module, of whose signal the process around it makes a number over 128."""
        return _of_shell(exit_code)

    def within(self, bounds: Bounds) -> Self:
        """Return the same with other bounds."""
        return self._under(replace(self.policy, bounds=bounds))

    def seeing(self, devices: tuple[Path, ...]) -> Self:
        """Return the same with the nodes of other accelerators."""
        return self._under(self.policy.seeing(devices))

    def reading(self, folder: Path) -> Self:
        """Return the same with one more folder that can be read."""
        return self._under(self.policy.reading(folder))

    def _under(self, policy: SandboxPolicy) -> Self:
        return replace(self, policy=policy)  # type: ignore[type-var]  # each is a dataclass


@dataclass(frozen=True, slots=True)
class InNamespaces(_ByTheKernel):
    """The strict rung."""

    binary: Path
    policy: SandboxPolicy
    up: Collection[Protection] = ALL
    """Which protections are there: all, but in tests of their absence."""
    rung: Rung = Rung.STRICT

    @property
    def by(self) -> str:
        """Return the path of bubblewrap."""
        return str(self.binary)

    @property
    def not_claimed(self) -> frozenset[Protection]:
        """Return that nothing is left out."""
        return frozenset()

    def command(self, room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command."""
        inside = Inside(
            keep=keep,
            limits=_limits(self.policy.bounds, self.up),
            filter=IN_NAMESPACES if Protection.SYSTEM_CALLS in self.up else "",
            memory_files=not _is_counted(self.policy.bounds, self.up),
        )
        inner = _python(_NOBODY, inside, module, arguments)
        return bubblewrap.command(self.binary, self.policy, room, inner, self.up)


@dataclass(frozen=True, slots=True)
class Landlocked(_ByTheKernel):
    """The strict rung's protections without namespaces."""

    policy: SandboxPolicy
    up: Collection[Protection] = ALL
    rung: Rung = Rung.LANDLOCK
    by: str = ""

    @property
    def not_claimed(self) -> frozenset[Protection]:
        """Return what only a namespace hides."""
        return _ONLY_IN_NAMESPACES

    def command(self, room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command."""
        view, has = self.policy.view, self.up.__contains__
        inside = Inside(
            keep=keep,
            limits=_limits(self.policy.bounds, self.up, beside_tasks=_own_threads()),
            filter=ALONE if has(Protection.SYSTEM_CALLS) else "",
            landlock=has(Protection.FILES),
            read=tuple(map(str, (*view.read_only, *view.links, room.given))),
            write=(str(room.scratch),),
            devices=(*_HARMLESS_DEVICES, *map(str, view.devices)),
            drop_capabilities=has(Protection.CAPABILITIES),
            memory_files=not _is_counted(self.policy.bounds, self.up),
            supervised=True,
        )
        return _python(os.getpid(), inside, module, arguments)


@dataclass(frozen=True, slots=True)
class InContainer(_ByTheKernel):
    """The container rung: the strict rung's view in a rootless container."""

    binary: Path
    policy: SandboxPolicy
    up: Collection[Protection] = ALL
    rung: Rung = Rung.CONTAINER

    @property
    def by(self) -> str:
        """Return the path of Podman."""
        return str(self.binary)

    @property
    def not_claimed(self) -> frozenset[Protection]:
        """Return that nothing is left out."""
        return frozenset()

    def command(self, room: Room, module: str, arguments: Sequence[str] = (), keep: tuple[int, ...] = ()) -> list[str]:
        """Return the command, of the container's keeper. Raises: ValueError for a path that can't be mounted."""
        inside = Inside(
            keep=keep,
            limits=_limits(self.policy.bounds, self.up),
            filter=IN_NAMESPACES if Protection.SYSTEM_CALLS in self.up else "",
            memory_files=not _is_counted(self.policy.bounds, self.up),
            lifeline=podman.lifeline_number(keep),
        )
        run = podman.ContainerRun(
            binary=str(self.binary),
            folder=str(podman.container_folder(room)),
            options=tuple(podman.options(self.policy, room, self.up)),
            links={str(path): target for path, target in self.policy.view.links.items()},
            keep=keep,
            command=tuple(_python(_NOBODY, inside, module, arguments)),
        )
        return [sys.executable, "-P", "-m", KEEPER, str(os.getpid()), in_words(run)]


def _of_shell(exit_code: int) -> int:
    return exit_code if exit_code <= _SIGNALLED else _SIGNALLED - exit_code


def _only_measured(bounds: Bounds) -> frozenset[Protection]:
    """Root may start any number of processes, whatever its namespace; CUDA can't live with a limit on addresses."""
    forks = {Protection.FORKS} if os.getuid() == 0 else set()
    memory = {Protection.MEMORY} if bounds.memory_bytes is not None and not bounds.counts_memory else set()
    return frozenset(forks | memory)


def _python(agent_pid: int, inside: Inside, module: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", "-m", LIFELINE, str(agent_pid), in_words(inside), module, *arguments]


def _limits(bounds: Bounds, up: Collection[Protection], beside_tasks: int = 0) -> dict[str, int]:
    """Return the kernel's limits; ``beside_tasks`` of the user's count too, where no namespace sets them apart."""
    limits = {"NOFILE": bounds.open_files}
    if bounds.memory_bytes is not None and _is_counted(bounds, up):
        limits["DATA"] = bounds.memory_bytes
    if Protection.FORKS in up:
        limits["NPROC"] = bounds.processes + beside_tasks
    if bounds.scratch_bytes is not None and Protection.FILE_SIZE in up:
        limits["FSIZE"] = bounds.scratch_bytes
    return limits


def _is_counted(bounds: Bounds, up: Collection[Protection]) -> bool:
    """Return whether the kernel holds a bound on memory."""
    return bounds.memory_bytes is not None and bounds.counts_memory and Protection.MEMORY in up


def _own_threads() -> int:
    """Count the threads of this process's user: without namespaces the kernel counts them too."""
    own = os.getuid()
    threads = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        if process.info["uids"] is not None and process.info["uids"].real == own:
            threads += process.info["num_threads"] or 0
    return threads
