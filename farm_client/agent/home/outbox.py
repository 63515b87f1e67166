"""Finished work that the farm has not acknowledged: on disk before it is sent, there until the farm has settled it.

An entry is one file, the result's frame with a small update inside, written under a temporary name and renamed. A
larger update is the executor's own file, renamed into the folder before its record. Nothing is fsynced: what a process
has written outlives the process, however it ends. A power cut may damage the newest entries; that is seen when they are
read, they are dropped, and the farm has the work done again, as for a machine that never comes back.

Each farm and identity has a folder of its own, so that no farm is sent another one's results.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.assignments import Result
from protocol.codec import decode, encode
from protocol.digests import digest_bytes
from protocol.errors import ProtocolError
from protocol.messages import HeldAssignment

MAX_ENTRIES: Final = 48
"""With the running ones they fit into a hello."""
_FORGET_FARM_SECONDS: Final = 14 * 86400.0
"""Results for a farm that was not joined for so long are of no use to anybody."""
_RECORD_NAME: Final = re.compile(r"(\d{8})-(\d+)\.result")


@dataclass(frozen=True, slots=True)
class Parcel:
    """A finished result as it is sent. ``path`` is the file of an update that is too large for a message."""

    result: Result
    round: int
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    number: int
    round: int
    fence: int
    size_bytes: int
    unwritten: Parcel | None = None
    """The parcel itself, where the disk did not take it."""


class Outbox:
    """The results that wait, oldest first. One process owns the folder (see ``HomeFolder.held``)."""

    def __init__(self, root: Path, farm: str, client_id: str, max_bytes: int, note: Callable[[str], None]) -> None:
        """``farm`` is its address; ``note`` gets a sentence on what had to be dropped."""
        self._folder = root / digest_bytes(f"{farm} {client_id}".encode())[:16]
        self._max_bytes = max_bytes
        self._note = note
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._used_bytes = 0
        self._last_number = 0
        self.emptied = asyncio.Event()
        """Set while nothing waits."""
        self._open(root)
        self._tell_emptiness()

    def __contains__(self, assignment_id: str) -> bool:
        return assignment_id in self._entries

    def assignment_ids(self) -> tuple[str, ...]:
        """Name the assignments whose results wait, the oldest first."""
        return tuple(self._entries)

    def held(self) -> tuple[HeldAssignment, ...]:
        """Say in hello what waits."""
        return tuple(HeldAssignment(assignment_id=i, fence=e.fence, finished=True) for i, e in self._entries.items())

    def put(self, parcel: Parcel) -> Parcel:
        """Keep a finished result until ``remove``; returns it with its update's file where that is now.

        Where the disk does not take it, it is kept in memory, with a note.
        """
        result = parcel.result
        self.remove(result.assignment_id)
        size_bytes = result.update.size_bytes if result.update is not None else 0
        self._make_room(size_bytes)
        self._last_number += 1
        number, unwritten = self._last_number, None
        try:
            parcel = self._write(number, parcel)
        except OSError as error:
            self._erase(number, parcel.round)
            self._note(f"cannot keep a finished result on disk ({error.strerror}): it is lost if this agent stops now")
            unwritten = parcel
        self._add(result.assignment_id, _Entry(number, parcel.round, result.fence, size_bytes, unwritten))
        return parcel

    def read(self, assignment_id: str) -> Parcel | None:
        """Return what waits for an assignment; None if nothing does. A damaged entry is dropped, with a note."""
        entry = self._entries.get(assignment_id)
        if entry is None:
            return None
        if entry.unwritten is not None:
            return entry.unwritten
        try:
            return self._parcel(entry)
        except (OSError, ProtocolError, ValueError) as error:
            self._note(f"dropped a damaged result from the outbox: {error}; the farm has it done again")
            self.remove(assignment_id)
            return None

    def remove(self, assignment_id: str) -> None:
        """Drop a result, if it is here: it is settled, or nobody wants it."""
        entry = self._entries.pop(assignment_id, None)
        if entry is not None:
            self._used_bytes -= entry.size_bytes
            self._erase(entry.number, entry.round)
            self._tell_emptiness()

    def _write(self, number: int, parcel: Parcel) -> Parcel:
        record = self._record_path(number, parcel.round)
        if parcel.path is not None:
            parcel = Parcel(parcel.result, parcel.round, parcel.path.replace(self._update_path(number)))
        unfinished = record.with_suffix(".part")
        unfinished.write_bytes(encode(parcel.result))
        unfinished.replace(record)
        return parcel

    def _parcel(self, entry: _Entry) -> Parcel:
        result = decode(self._record_path(entry.number, entry.round).read_bytes())
        if not isinstance(result, Result):
            raise ValueError(f"it holds a {result.type}")  # noqa: TRY004  the file is wrong, not a type in the code
        update, path = result.update, None
        if update is not None and update.carried is None:
            path = self._update_path(entry.number)
            if path.stat().st_size != update.size_bytes:
                raise ValueError("its update is cut short")
        elif update is not None and digest_bytes(update.carried or b"") != update.digest:
            raise ValueError("its update does not hash to its name")
        return Parcel(result, entry.round, path)

    def _make_room(self, size_bytes: int) -> None:
        """Drop the oldest until the new one fits; the newest is kept however large it is."""
        while self._entries and (len(self._entries) >= MAX_ENTRIES or self._used_bytes + size_bytes > self._max_bytes):
            oldest = next(iter(self._entries))
            self._note("the outbox is full: dropped its oldest result; the farm has it done again")
            self.remove(oldest)

    def _open(self, root: Path) -> None:
        """Take in what a former process left, and clear what it left half-written."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_farms(root, self._folder)
            self._take_over()
        except OSError as error:
            self._note(f"cannot read the outbox ({error.strerror}): finished results are kept in memory")

    def _take_over(self) -> None:
        found = sorted((m, path) for path in self._folder.iterdir() if (m := _numbers(path)) is not None)
        for (number, round_number), _ in found:
            self._last_number = number
            self._take_in(_Entry(number, round_number, fence=0, size_bytes=0))
        kept = {path for entry in self._entries.values() for path in self._files(entry)}
        for path in set(self._folder.iterdir()) - kept:
            path.unlink()

    def _take_in(self, entry: _Entry) -> None:
        try:
            result = self._parcel(entry).result
        except (OSError, ProtocolError, ValueError) as error:
            self._note(f"dropped a damaged result from the outbox: {error}; the farm has it done again")
            return
        size_bytes = result.update.size_bytes if result.update is not None else 0
        self._make_room(size_bytes)
        self._add(result.assignment_id, _Entry(entry.number, entry.round, result.fence, size_bytes))

    def _add(self, assignment_id: str, entry: _Entry) -> None:
        self._entries[assignment_id] = entry
        self._used_bytes += entry.size_bytes
        self._tell_emptiness()

    def _tell_emptiness(self) -> None:
        if self._entries:
            self.emptied.clear()
        else:
            self.emptied.set()

    def _erase(self, number: int, round_number: int) -> None:
        record = self._record_path(number, round_number)
        for path in (record, record.with_suffix(".part"), self._update_path(number)):
            with suppress(
                OSError
            ):  # a disk that is read-only or gone: what is left is told again, and not counted twice
                path.unlink(missing_ok=True)

    def _files(self, entry: _Entry) -> tuple[Path, Path]:
        return self._record_path(entry.number, entry.round), self._update_path(entry.number)

    def _record_path(self, number: int, round_number: int) -> Path:
        return self._folder / f"{number:08}-{round_number}.result"

    def _update_path(self, number: int) -> Path:
        return self._folder / f"{number:08}.update"


def _numbers(path: Path) -> tuple[int, int] | None:
    """Return the entry's number and round of a record's file."""
    found = _RECORD_NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else None


def _forget_farms(root: Path, own: Path) -> None:
    """Delete what waits for farms that this machine has long left."""
    oldest = time.time() - _FORGET_FARM_SECONDS
    for folder in root.iterdir():
        if folder != own and folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)
