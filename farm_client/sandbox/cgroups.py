"""Bounds of a whole executor by control groups (cgroup v2), where the system has delegated some to this user.

    <a delegated group>/aifarm-<agent's pid>-<number>    one executor, with all that it starts

The kernel then holds memory, processes and processor time together, for root's processes too, with nothing to measure.
A group that already gives its children controllers is used as it is: the user's own under systemd. Where the agent is
alone in its group, as a service with ``Delegate=yes`` is, it moves to a leaf of it, for a group with processes gives
no controllers (docs.kernel.org/admin-guide/cgroup-v2.html, "No Internal Process Constraint").
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from farm_client.sandbox.policy import Bounds
from farm_client.sandbox.watch import Excess
from protocol.wording import sized

_PROC: Final = Path("/proc/self")
_PREFIX: Final = "aifarm-"
_WANTED: Final = ("memory", "pids", "cpu")
_PERIOD_MICROSECONDS: Final = 100_000
_LEAST_QUOTA_MICROSECONDS: Final = 1_000
"""The kernel takes no less."""
_DELEGATED: Final = "user.delegate"
_REMOVE_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 0.01
_JOIN: Final = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
"""A shell's: a process enters before it starts what it is for, and before anything else is started."""

Act = Callable[[Path], None]


def cpu_max(cores: float | None) -> str:
    """Return what ``cpu.max`` says for so many cores of time, such as 0.5; None for no bound."""
    if cores is None:
        return f"max {_PERIOD_MICROSECONDS}"
    return f"{max(_LEAST_QUOTA_MICROSECONDS, round(cores * _PERIOD_MICROSECONDS))} {_PERIOD_MICROSECONDS}"


class ExecutorGroup:
    """The control group of one executor. Made by ``Delegation.make``, removed by ``remove``."""

    def __init__(self, folder: Path, rmdir: Act = Path.rmdir) -> None:
        self.folder = folder
        self._rmdir = rmdir
        self._written: dict[str, str] = {}

    def keep_within(self, bounds: Bounds, cpu_cores: float | None) -> None:
        """Set its bounds, or other ones; what this system does not bound is left out.

        Memory over a bound that is lowered is taken back, and if it can't be the executor is ended, by the kernel.
        """
        self._write("memory.max", "max" if bounds.memory_bytes is None else str(bounds.memory_bytes))
        self._write("memory.oom.group", "1")  # half an executor is of no use
        self._write("pids.max", str(bounds.processes))
        self._write("cpu.max", cpu_max(cpu_cores))

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs another one inside."""
        return ["/bin/sh", "-c", _JOIN, str(self.folder), *command]

    def excess(self) -> Excess | None:
        """Say whether the kernel ended something in it for its memory; None if not."""
        events = self._events("memory.events")
        if not (events.get("oom_kill") and events.get("oom")):  # the machine's memory may have run out instead
            return None
        most = self._written.get("memory.max", "")
        may = f", and may use {sized(int(most))}" if most.isdecimal() else ""
        return Excess("memory", f"all its processes together ran out of memory{may}")

    def remove(self) -> None:
        """End what is left in it, and remove it; it blocks until the kernel has let go, some seconds at most."""
        with suppress(OSError):  # before Linux 5.14; what is left then was ended by its process group
            (self.folder / "cgroup.kill").write_text("1")
        deadline = time.monotonic() + _REMOVE_SECONDS
        while self.folder.exists() and time.monotonic() < deadline:
            try:
                self._rmdir(self.folder)
            except OSError:  # a process in it is on its way out
                time.sleep(_LOOK_AGAIN_SECONDS)

    def _write(self, name: str, text: str) -> None:
        if self._written.get(name) == text:
            return
        file = self.folder / name
        if file.exists():
            with suppress(OSError):  # what can't be set stays as it was; the agent measures too
                file.write_text(text)
                self._written[name] = text

    def _events(self, name: str) -> dict[str, int]:
        try:
            lines = (self.folder / name).read_text().splitlines()
        except OSError:
            return {}
        return {key: int(number) for key, _, number in (line.partition(" ") for line in lines) if number.isdecimal()}


@dataclass(frozen=True, slots=True)
class Delegation:
    """A group in which this user may make others. ``controllers``: what those bound."""

    folder: Path
    controllers: tuple[str, ...]
    mkdir: Act = Path.mkdir
    rmdir: Act = Path.rmdir
    _numbers: count[int] = field(default_factory=count)

    def make(self, bounds: Bounds, cpu_cores: float | None = None) -> ExecutorGroup:
        """Make a group with bounds. Raises: OSError."""
        folder = self.folder / f"{_PREFIX}{os.getpid()}-{next(self._numbers)}"
        self.mkdir(folder)
        group = ExecutorGroup(folder, self.rmdir)
        group.keep_within(bounds, cpu_cores)
        return group

    def clear_left(self) -> None:
        """Remove the groups that killed agents left, of which nothing lives any more."""
        for folder in self.folder.glob(f"{_PREFIX}*-*"):
            agent_pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path("/proc", agent_pid).exists():  # else it may be about to put something in
                with suppress(OSError):
                    self.rmdir(folder)

    def holds(self) -> bool:
        """Return whether a process can be put into a group here, and the group be removed: tried, not assumed."""
        try:
            group = self.make(Bounds())
        except OSError:
            return False
        command, said = group.command(["/bin/cat", "/proc/self/cgroup"]), ""
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        group.remove()
        return group.folder.name in said and not group.folder.exists()


def is_delegated(folder: Path) -> bool:
    """Return whether a group that this user may write to is theirs to use.

    Root may write to all of them, and most are systemd's alone ("single-writer rule"): it marks those that it leaves
    to others. The root of a hierarchy belongs to whoever has no such manager, as in a container.
    """
    if os.geteuid() != 0 or not (folder / "cgroup.type").exists():
        return True
    with suppress(OSError):
        return os.getxattr(folder, _DELEGATED) == b"1"
    return False


def find_delegation(
    proc: Path = _PROC,
    is_ours: Callable[[Path], bool] = is_delegated,
    holds: Callable[[Delegation], bool] = Delegation.holds,
) -> Delegation | None:
    """Return where this process may bound its executors by groups; None where it may not, or there is no cgroup v2.

    It is tried before it is returned. This process may be moved to a leaf of its own group, with what it started.
    """
    if sys.platform != "linux":
        return None
    root, own = _mount(proc), _own_path(proc)
    if root is None or own is None:
        return None
    here = root / own
    above = [folder for folder in (here, *here.parents) if folder.is_relative_to(root)]
    usable = [folder for folder in above if _may_make(folder) and is_ours(folder)]
    giving = next((folder for folder in usable if _given(folder)), None)
    if giving is None and here in usable and _enable(here):
        giving = here
    if giving is None or not (controllers := _given(giving)):
        return None
    delegation = Delegation(giving, controllers)
    delegation.clear_left()
    return delegation if holds(delegation) else None


def _mount(proc: Path) -> Path | None:
    """Return where cgroup v2 is mounted: the fifth field of a line, the type behind the dash."""
    with suppress(OSError):
        for line in (proc / "mountinfo").read_text().splitlines():
            before, _, behind = line.partition(" - ")
            if behind.startswith("cgroup2 "):
                return Path(before.split()[4])
    return None


def _own_path(proc: Path) -> str | None:
    with suppress(OSError):
        for line in (proc / "cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return line.removeprefix("0::/")
    return None


def _may_make(folder: Path) -> bool:
    return os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)


def _given(folder: Path) -> tuple[str, ...]:
    """Return which of the wanted controllers the children of a group have."""
    given = _words(folder / "cgroup.subtree_control")
    return tuple(name for name in _WANTED if name in given)


def _enable(own: Path) -> bool:
    """Give the children of this process's own group what can be bounded, if nobody else is in it."""
    possible = [name for name in _WANTED if name in _words(own / "cgroup.controllers")]
    if not possible or any(not _descends(int(pid)) for pid in _words(own / "cgroup.procs")):
        return False
    leaf = own / f"{_PREFIX}agent"
    try:
        leaf.mkdir(exist_ok=True)
        for pid in _words(own / "cgroup.procs"):
            with suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
        (own / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in possible))
    except OSError:
        return False
    return True


def _descends(pid: int) -> bool:
    """Return whether a process is this one, or was started by it or its children."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True  # it has ended
        pid = int(status.rpartition(")")[2].split()[1])
    return False


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
