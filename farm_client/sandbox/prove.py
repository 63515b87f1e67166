"""Proves a rung on this machine: runs the escape probes inside of it, and looks from outside at what they reached.

A proof is made at each start of an agent, because what holds depends on the kernel, its settings, the container around,
and the version of bubblewrap. It fails closed: a rung that can't be started, that says nothing, or of which one probe
gets out, is not used.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from farm_client.sandbox.confinement import Confinement
from farm_client.sandbox.decoys import VARIABLE, Decoys, not_granted
from farm_client.sandbox.ending import end_all
from farm_client.sandbox.policy import Bounds
from farm_client.sandbox.probes import VERSION, Breach
from farm_client.sandbox.protection import Protection
from farm_client.sandbox.room import Room
from farm_client.sandbox.targets import Targets
from farm_client.sandbox.watch import excess
from farm_client.sandbox.words import in_words
from protocol.sandbox import Rung

_PROBES: Final = "farm_client.sandbox.probes"
_HOG: Final = "farm_client.sandbox.hog"
_MEASURE_SECONDS: Final = 0.02
_TIMEOUT_SECONDS: Final = 20.0
_MIB: Final = 1024**2
_GIVEN: Final = b"given"
_MOST_ERROR_CHARS: Final = 300


Environment = Callable[[Path, Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of the probes. ``problem`` says why a rung could not be started at all."""

    rung: Rung
    breaches: tuple[Breach, ...] = ()
    problem: str = ""
    probes: int = 0
    seconds: float = 0.0
    by: str = ""
    """The program that makes it, if it is one."""

    @property
    def holds(self) -> bool:
        """Whether tasks may be run on this rung."""
        return bool(self.probes) and not self.breaches and not self.problem

    def in_words(self) -> str:
        """Say in a line what came of it."""
        if self.holds:
            return f"{self.rung}: holds (escape probes {self.probes}, {1000 * self.seconds:.0f} ms)"
        if self.problem:
            return f"{self.rung}: not available: {self.problem}"
        first = self.breaches[0]
        more = f", and {len(self.breaches) - 1} more" if len(self.breaches) > 1 else ""
        return f"{self.rung}: refused: the probe of {first.protection} could {first.what}{more}"


async def prove(confinement: Confinement, parent: Path, environment: Environment) -> Proof:
    """Try a rung in a room in ``parent``, whose secrets it must hide. Never raises but for cancellation.

    ``environment`` makes what an executor gets, from a scratch folder and this process's variables.
    """
    began = time.monotonic()
    try:
        proof = await _prove(confinement.within(_small(confinement.policy.bounds)), parent, environment)
    except (OSError, ValueError) as error:
        proof = Proof(confinement.rung, problem=str(error))
    return replace(proof, by=confinement.by, seconds=time.monotonic() - began)


def _small(bounds: Bounds) -> Bounds:
    """Return the bounds of a proof: a bound is tried by what goes over it, and that should be little."""
    memory_bytes = None if bounds.memory_bytes is None else 512 * _MIB
    return replace(bounds, memory_bytes=memory_bytes, processes=48, scratch_bytes=8 * _MIB)


async def _prove(confinement: Confinement, parent: Path, environment: Environment) -> Proof:
    room = await asyncio.to_thread(Room.make, parent)
    try:
        async with Decoys(parent) as decoys:
            targets = make_targets(confinement, room, decoys)
            given = environment(room.scratch, {**os.environ, VARIABLE: "secret"})
            command = confinement.command(room, _PROBES, (in_words(targets),))
            exit_code, output, errors = await _run(command, room, given)
            proof = _judge(confinement, exit_code, output, errors)
            seen = tuple(Breach("seen from outside", what) for what in decoys.reached())
            if not is_unchanged(Path(targets.given_file)):
                seen += (Breach(Protection.READ_ONLY, f"change {targets.given_file}"),)
            proof = replace(proof, breaches=(*proof.breaches, *seen))
            return replace(proof, breaches=await _unmeasured(confinement, room, given)) if proof.holds else proof
    finally:
        await asyncio.to_thread(room.remove)


def make_targets(confinement: Confinement, room: Room, decoys: Decoys) -> Targets:
    """Return what can be tried in a room, around which there are decoys. Raises: OSError."""
    policy, bounds = confinement.policy, confinement.policy.bounds
    given = room.given / "given"
    given.write_bytes(_GIVEN)
    limits = {
        "memory_bytes": bounds.memory_bytes,
        "processes": bounds.processes,
        "file_bytes": bounds.scratch_bytes,
        "files": bounds.scratch_files,
        "tmp_bytes": bounds.tmp_bytes,
        "shm_bytes": bounds.shm_bytes,
    }
    return Targets(
        secret_file=str(decoys.secret),
        secret_folders=tuple(str(path) for path in (Path.home(), decoys.secret.parent, *policy.secrets)),
        visible=tuple(str(path) for path in (*policy.view.read_only, room.given)),
        given_file=str(given),
        scratch=str(room.scratch),
        tcp_port=decoys.tcp_port,
        unix_path=decoys.unix_path,
        unix_abstract=decoys.mark,
        decoy_pid=decoys.pid,
        decoy_mark=decoys.mark,
        queue_key=decoys.queue_key,
        host_name=os.uname().nodename,
        cgroup=_own_cgroup(),
        devices=not_granted(policy.view.devices),
        granted=tuple(device.relative_to("/dev").parts[0] for device in policy.view.devices),
        variable=VARIABLE,
        bounds={name: value for name, value in limits.items() if value is not None},
        skipped=tuple(sorted(confinement.not_claimed | confinement.only_measured)),
    )


async def _run(command: list[str], room: Room, environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run the probes. Raises: OSError; TimeoutError if they do not end."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=room.scratch,
        env=environment,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise TimeoutError(f"the escape probes did not end in {_TIMEOUT_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None  # noqa: S101  it was waited for
    return process.returncode, output, errors


async def _unmeasured(confinement: Confinement, room: Room, environment: Mapping[str, str]) -> tuple[Breach, ...]:
    """Go over each bound that only measuring holds, and say which ones the measuring missed."""
    bounds, found = confinement.policy.bounds, []
    amounts = {Protection.FORKS: 4 * bounds.processes, Protection.MEMORY: 2 * (bounds.memory_bytes or 0)}
    for protection, amount in amounts.items():
        if amount and protection in confinement.only_measured:
            process = await asyncio.create_subprocess_exec(
                *confinement.command(room, _HOG, (protection, str(amount))),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                cwd=room.scratch,
                env=environment,
                start_new_session=True,
            )
            try:
                if not await _is_noticed(process, bounds):
                    found.append(Breach(protection, f"take {amount} unnoticed"))
            finally:
                end_all(process.pid)
                await process.wait()
    return tuple(found)


async def _is_noticed(process: asyncio.subprocess.Process, bounds: Bounds) -> bool:
    """Measure until a bound is gone over, or the hog holds all that it wants."""
    assert process.stdout is not None  # noqa: S101  it is a pipe
    holds = asyncio.ensure_future(process.stdout.readline())
    try:
        while True:
            is_there, _pending = await asyncio.wait((holds,), timeout=_MEASURE_SECONDS)
            if excess(process.pid, bounds) is not None:
                return True
            if is_there:
                return False
    finally:
        holds.cancel()


def _judge(confinement: Confinement, exit_code: int, output: bytes, errors: bytes) -> Proof:
    """Read what the probes said; whatever is not exactly that is a rung that does not work."""
    try:
        said = json.loads(output)
        breaches = tuple(Breach(str(protection), str(what)) for protection, what in said["breaches"])
        if said["probes"] == VERSION and (exit_code == 0) is not bool(breaches):
            return Proof(confinement.rung, breaches, probes=VERSION)
    except (ValueError, KeyError, TypeError):
        pass
    last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"it ended with code {exit_code}"]
    return Proof(confinement.rung, problem=last[0][:_MOST_ERROR_CHARS])


def is_unchanged(given: Path) -> bool:
    """Return whether the file that was given to be read is what it was."""
    return given.exists() and given.read_bytes() == _GIVEN


def _own_cgroup() -> str:
    """Return this process's control group, if it is in one with a name."""
    try:
        paths = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except (OSError, IndexError):
        return ""
    return max((path for path in paths if path != "/"), key=len, default="")
