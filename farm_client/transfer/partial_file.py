"""A file that is fetched in parts, in any order, over several tries and several runs of the program.

    <path>         the bytes, each where it belongs
    <path>.json    which of them are there; written now and then, so it may name fewer than there are, never more

The digest is taken along the contiguous prefix while parts come in, so that little is left to read at the end.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from blake3 import blake3
from pydantic import ValidationError

from protocol.digests import new_hasher
from protocol.errors import Conflict
from protocol.frozen import Frozen
from protocol.ranges import ByteRange, ByteRanges

_READ_BYTES: Final = 1024 * 1024
_READ_ON_BYTES: Final = 16 * 1024 * 1024
"""The most that one write reads back, to catch up with what came out of order; ``close`` may wait for so much."""


class Sidecar(Frozen):
    """What is known of an unfinished file. ``present`` is written as ``ByteRanges`` writes itself."""

    size_bytes: int
    present: str

    def ranges(self, stored_bytes: int) -> ByteRanges:
        """Return what is present. Raises: ValueError if a file of ``stored_bytes`` cannot hold it."""
        present = ByteRanges.parse(self.present)
        if any(part.end > min(stored_bytes, self.size_bytes) for part in present):
            raise ValueError(f"{self.present[:80]!r} names bytes that are not there")
        return present


def read_sidecar(path: Path) -> Sidecar | None:
    """Return what is known of the unfinished file at ``path``; None if it is of no use to anybody."""
    try:
        sidecar = Sidecar.model_validate_json(_sidecar_path(path).read_bytes())
        sidecar.ranges(path.stat().st_size)
    except (OSError, ValidationError, ValueError):
        return None
    return sidecar


def remove_partial(path: Path) -> None:
    """Remove an unfinished file, if there is one, and what is known of it."""
    for leftover in (path, _sidecar_path(path), _new_sidecar_path(path)):
        leftover.unlink(missing_ok=True)


class PartialFile:
    """An unfinished file of ``size_bytes``; what an earlier run left of it is there at once. Close it in any case.

    Methods block, though not for long; they may be called from several threads.
    Raises: Conflict if another process is writing the same file; OSError.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        import fcntl  # noqa: PLC0415 - Windows has none, and transfers nothing yet

        self.path = path
        self.size_bytes = size_bytes
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise Conflict(f"another process is writing {path}: wait until it is done, or end it") from error
        # taken in this order; the last one is never held while a disk is waited for
        self._writing, self._hashing, self._counting = threading.Lock(), threading.Lock(), threading.Lock()
        self._present = self._known()
        self.present_bytes = self._present.total_bytes
        """How much of it is here."""
        self._hasher: blake3 = new_hasher()
        self._hashed_bytes = 0

    def missing(self) -> list[ByteRange]:
        """List what is not here yet."""
        with self._counting:
            return list(self._present.missing(self.size_bytes))

    def write(self, start: int, data: bytes | bytearray) -> int:
        """Put bytes where they belong and return how many of them were here before; after ``close`` nothing is done."""
        with self._writing:
            if self._file.closed:
                return 0
            _write_all(self._file.fileno(), data, start)
            with self._counting:
                self._present.add(start, start + len(data))
                before, self.present_bytes = self.present_bytes, self._present.total_bytes
                repeated_bytes = len(data) - (self.present_bytes - before)
        self._hash_along(start, data)
        return repeated_bytes

    def hexdigest(self) -> str:
        """Return the digest of the file, which must be here as a whole."""
        with self._hashing:
            while self._read_on():
                pass
            return self._hasher.hexdigest()

    def restart(self) -> None:
        """Drop all that is here: it is damaged."""
        with self._writing, self._hashing:
            _sidecar_path(self.path).unlink(missing_ok=True)
            self._file.truncate(0)
            self._hasher, self._hashed_bytes = new_hasher(), 0
            with self._counting:
                self._present, self.present_bytes = ByteRanges(), 0

    def save(self) -> None:
        """Note what is here, to be found if this process is killed."""
        with self._writing:
            self._note()

    def finish(self) -> None:
        """Close the file, which is whole now."""
        with self._writing, self._hashing:
            self._file.close()
            _sidecar_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, unless that is done, and note what is here for another try; of nothing leave nothing."""
        with self._writing, self._hashing:
            if self._file.closed:
                return
            if self.present_bytes:
                self._note()
            else:
                remove_partial(self.path)
            self._file.close()

    def _known(self) -> ByteRanges:
        sidecar = read_sidecar(self.path)
        if sidecar is None or sidecar.size_bytes != self.size_bytes:
            self._file.truncate(0)
            return ByteRanges()
        return ByteRanges.parse(sidecar.present)

    def _note(self) -> None:
        with self._counting:
            sidecar = Sidecar(size_bytes=self.size_bytes, present=str(self._present))
        unfinished = _new_sidecar_path(self.path)
        unfinished.write_text(sidecar.model_dump_json())
        unfinished.replace(_sidecar_path(self.path))

    def _hash_along(self, start: int, data: bytes | bytearray) -> None:
        """Take the digest further, unless another thread is at it."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            if self._file.closed:
                return
            if start == self._hashed_bytes:
                self._hasher.update(data)
                self._hashed_bytes += len(data)
            else:
                self._read_on()
        finally:
            self._hashing.release()

    def _read_on(self) -> bool:
        """Hash a stretch of the prefix from the file; return whether there was any."""
        with self._counting:
            end = min(self._present.prefix_bytes, self._hashed_bytes + _READ_ON_BYTES)
        before = self._hashed_bytes
        while self._hashed_bytes < end:
            count = min(_READ_BYTES, end - self._hashed_bytes)
            if not (data := os.pread(self._file.fileno(), count, self._hashed_bytes)):
                break  # somebody cut the file; its digest will tell
            self._hasher.update(data)
            self._hashed_bytes += len(data)
        return self._hashed_bytes > before


def _write_all(handle: int, data: bytes | bytearray, start: int) -> None:
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(handle, rest[done:], start + done)


def _sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _new_sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json.new")
