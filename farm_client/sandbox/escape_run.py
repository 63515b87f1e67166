"""Runs one case of the escape suite in a sandbox, and judges from outside whether it was contained.

What a case says counts, and so does what is seen: a decoy that was reached, a file that changed or was made outside of
its folder, and what is left when it is ended: processes, files, mounts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from farm_client.sandbox.confinement import Confinement
from farm_client.sandbox.decoys import VARIABLE, Decoys
from farm_client.sandbox.ending import end_all
from farm_client.sandbox.escape_attempt import BEGUN, ESCAPED, TARGETS_VARIABLE
from farm_client.sandbox.escape_cases import EscapeCase
from farm_client.sandbox.policy import Bounds
from farm_client.sandbox.prove import Environment, is_unchanged, make_targets
from farm_client.sandbox.room import Room
from farm_client.sandbox.watch import Excess, excess, scratch_excess
from farm_client.sandbox.words import in_words
from protocol.sandbox import Rung

_ESCAPES: Final = "farm_client.sandbox.escapes"
_MIB: Final = 1024**2
_MEASURE_SECONDS: Final = 0.1
_GONE_SECONDS: Final = 3.0
"""How long what was killed may take to be gone."""
_STARTS_SECONDS: Final = 20.0
"""How long a sandbox may take until a case begins."""
_KEPT_BYTES: Final = 64 * 1024
_MOST_DETAIL_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class EscapeResult:
    """What came of one case on one rung. ``contained`` is None where it was not run, and ``detail`` says why."""

    case: str
    rung: Rung
    contained: bool | None
    detail: str


def small(bounds: Bounds) -> Bounds:
    """Return bounds that are quickly gone over."""
    return replace(
        bounds,
        memory_bytes=256 * _MIB,
        processes=48,
        scratch_bytes=16 * _MIB,
        scratch_files=500,
        shm_bytes=8 * _MIB,
        tmp_bytes=8 * _MIB,
    )


async def run_case(
    confinement: Confinement, case: EscapeCase, parent: Path, environment: Environment, *, all_claimed: bool = False
) -> EscapeResult:
    """Run a case in a folder of its own in ``parent``, and judge. ``all_claimed``: whatever the rung says it can't do.

    Raises: OSError where no folder or process can be made.
    """
    if case.against in confinement.not_claimed and not all_claimed:
        return EscapeResult(case.name, confinement.rung, None, f"{confinement.rung} does not claim it: {case.against}")
    home = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="escape-", dir=parent))
    try:
        async with Decoys(home) as decoys:
            return await _Attempt(confinement.within(small(confinement.policy.bounds)), case, home, decoys).run(
                environment
            )
    finally:
        await asyncio.to_thread(Room(home).remove)


class _Attempt:
    """One run of one case."""

    def __init__(self, confinement: Confinement, case: EscapeCase, home: Path, decoys: Decoys) -> None:
        self._confinement = confinement
        self._case = case
        self._home = home
        self._decoys = decoys
        self._printed = {1: b"", 2: b""}
        self._excess: Excess | None = None
        self._ended = False

    async def run(self, environment: Environment) -> EscapeResult:
        """Run it, end it, judge it."""
        room = await asyncio.to_thread(Room.make, self._home)
        targets = make_targets(self._confinement, room, self._decoys)
        if self._case.needs and not any(self._case.needs in device for device in targets.devices):
            detail = f"this machine has no {self._case.needs} device that is not granted"
            return EscapeResult(self._case.name, self._confinement.rung, None, detail)
        before, mounts = self._outside(), _mounts(self._home)
        variables = {
            **environment(room.scratch, {**os.environ, VARIABLE: "secret"}),
            "FARM_CASE": self._decoys.mark,
            TARGETS_VARIABLE: in_words(targets),
        }
        command = self._confinement.command(room, _ESCAPES, (self._case.name,))
        with self._decoys.secret.open("rb") as secret:  # a file that the agent has open when it starts an executor
            code = await self._run(command, room, variables, secret.fileno())
        found = [*self._said(), *self._decoys.reached()]
        if not is_unchanged(Path(targets.given_file)):
            found.append("changed a given file")
        if self._outside() != before:
            found.append("changed what is outside of its folder")
        found += [f"left a mount at {mount}" for mount in _mounts(self._home) - mounts]
        if left := await self._left(room):
            found.append(f"left {len(left)} processes")
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(room.remove)
        if room.root.exists():
            found.append("left files")
        if BEGUN.encode() not in self._printed[1]:
            found.append("could not be begun")
        detail = "; ".join(dict.fromkeys(found)) or self._how(code)
        return EscapeResult(self._case.name, self._confinement.rung, not found, detail[:_MOST_DETAIL_CHARS])

    async def _run(self, command: list[str], room: Room, variables: Mapping[str, str], inherited: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=room.scratch,
            env=variables,
            pass_fds=(inherited,),
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101  both are pipes
        assert process.stderr is not None  # noqa: S101
        readers = [
            asyncio.ensure_future(self._read(stream, number))
            for number, stream in ((1, process.stdout), (2, process.stderr))
        ]
        try:
            await self._watch(process, room)
        finally:
            end_all(process.pid)
            code = self._confinement.own_exit_code(await process.wait())
            _done, open_still = await asyncio.wait(readers, timeout=_GONE_SECONDS)
            for reader in open_still:
                reader.cancel()
        return code

    async def _watch(self, process: asyncio.subprocess.Process, room: Room) -> None:
        """Wait for its end, for a bound that it goes over, or for its time to be up."""
        bounds, began = self._confinement.policy.bounds, 0.0
        deadline = time.monotonic() + _STARTS_SECONDS
        ends = asyncio.ensure_future(process.wait())
        try:
            while time.monotonic() < deadline:
                if not began and BEGUN.encode() in self._printed[1]:
                    began = time.monotonic()
                    deadline = began + self._case.seconds
                if (await asyncio.wait((ends,), timeout=_MEASURE_SECONDS))[0]:
                    return
                self._excess = excess(process.pid, bounds) or await asyncio.to_thread(
                    scratch_excess, room.scratch, bounds, process.pid
                )
                if self._excess is not None:
                    return
            self._ended = True
        finally:
            ends.cancel()

    async def _read(self, stream: asyncio.StreamReader, number: int) -> None:
        while data := await stream.read(_KEPT_BYTES):
            self._printed[number] = (self._printed[number] + data)[:_KEPT_BYTES]

    def _said(self) -> Iterator[str]:
        for line in self._printed[1].decode(errors="replace").splitlines():
            if line.startswith(ESCAPED):
                yield line.removeprefix(ESCAPED)

    def _outside(self) -> tuple[object, ...]:
        """Return what must stay as it is: the files beside its folders, and what the secret is."""
        names = sorted(os.listdir(self._home))  # noqa: PTH208
        with suppress(OSError):
            status = self._decoys.secret.stat()
            return names, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink
        return (names,)

    async def _left(self, room: Room) -> list[int]:
        """List the processes that outlive it, by a variable, or by the folder that they work in."""
        deadline = time.monotonic() + _GONE_SECONDS
        while left := list(_of(self._decoys.mark, room)):
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(_MEASURE_SECONDS)
        return []

    def _how(self, code: int) -> str:
        """Say how it ended, which was none of what it wanted."""
        if self._excess is not None:
            return f"ended: {self._excess.sentence}"
        if self._ended:
            return "ended when its time was up"
        if code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        lines = self._printed[2].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it got nothing"


def _of(mark: str, room: Room) -> Iterator[int]:
    own = os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"FARM_CASE={mark}".encode() in (folder / "environ").read_bytes()
            at_home = str((folder / "cwd").readlink()).startswith(str(room.root))
            if (marked or at_home) and int(folder.name) != own:
                yield int(folder.name)


def _mounts(home: Path) -> frozenset[str]:
    """List the mounts below a folder."""
    with suppress(OSError):
        places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return frozenset(place for place in places if place.startswith(str(home)))
    return frozenset()
