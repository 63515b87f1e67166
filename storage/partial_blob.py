"""A blob of which only some bytes are here yet: a sparse file, and beside it a list of what was received.

    NAME.part      the bytes, each at its place; as long as the blob from the start
    NAME.ranges    what was written, a line for each write such as ``0-1048576``; a line without its end does not count

A range is recorded after its bytes were written, so that a process killed at any moment claims nothing that it has not.
(After a power cut the list may know more than the file holds: in the end the digest decides.) No byte is written twice:
what is hashed while it arrives is what the file holds.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Final, Self

from protocol.digests import new_hasher
from protocol.errors import DigestMismatch
from protocol.ranges import ByteRange, ByteRanges
from storage.errors import NoUpload, disk_errors

Bytes = bytes | memoryview
_NAME: Final = re.compile(r"([0-9a-f]{64})-(\d{1,18})", re.ASCII)
_BLOCK_BYTES: Final = 1024 * 1024
_HASHED_AT_ONCE_BYTES: Final = 16 * _BLOCK_BYTES
"""Of what arrived before the bytes in front of it, or before a restart: hashed after a write, so that none is slow."""
_PIECES_AT_ONCE: Final = 64
"""The system takes no more than some hundred."""


class State(Enum):
    """What becomes of a partial blob."""

    RECEIVING = auto()
    CHECKING = auto()
    """All bytes are here; somebody hashes the rest of them and gives them their name."""
    GONE = auto()


class PartialBlob:
    """One blob on its way in. All methods may be called from any number of threads; those that touch the disk block."""

    def __init__(self, folder: Path, digest: str, size_bytes: int, received: ByteRanges) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self.name = name_of(digest, size_bytes)
        self._data_path = folder / f"{self.name}.part"
        self._list_path = folder / f"{self.name}.ranges"
        self._received = received
        self._list_bytes = 0
        self._being_written: list[ByteRange] = []
        self._lock = threading.Lock()
        """Held for moments, never while bulk is written or read."""
        self._hasher = new_hasher()
        self._hashed_bytes = 0
        self._hashing = threading.Lock()
        self._state = State.RECEIVING
        self._progress_at = time.time()

    @classmethod
    def create(cls, folder: Path, digest: str, size_bytes: int) -> Self:
        """Make the files of a blob of which nothing is here. Raises: Unavailable if the disk refuses."""
        partial = cls(folder, digest, size_bytes, ByteRanges())
        with disk_errors(folder):
            partial._list_path.write_bytes(b"")
            with partial._data_path.open("wb") as file:
                file.truncate(size_bytes)
        return partial

    @classmethod
    def load(cls, folder: Path, digest: str, size_bytes: int) -> Self | None:
        """Take up what a former process left; None if its files are not as they should be. Raises: Unavailable."""
        partial = cls(folder, digest, size_bytes, ByteRanges())
        with disk_errors(folder):
            if not partial._list_path.is_file() or not partial._data_path.is_file():
                return None
            lines = partial._list_path.read_bytes().split(b"\n")[:-1]
            partial._progress_at = partial._list_path.stat().st_mtime
            if partial._data_path.stat().st_size != size_bytes:
                return None
        try:
            for line in lines:
                for start, end in ByteRanges.parse(line.decode("ascii")):
                    partial._received.add(start, end)
        except ValueError:
            return None
        partial._list_bytes = sum(len(line) + 1 for line in lines)
        return None if any(end > size_bytes for _, end in partial._received) else partial

    @property
    def received_bytes(self) -> int:
        """Count the bytes that are here."""
        with self._lock:
            return self._received.total_bytes

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here; nobody has said yet that they are the right ones."""
        return self.received_bytes == self.size_bytes

    @property
    def is_checked(self) -> bool:
        """Whether all bytes are here, and somebody checks them now."""
        return self._state is State.CHECKING

    @property
    def is_gone(self) -> bool:
        """Whether it was dropped, or became a blob."""
        return self._state is State.GONE

    def idle_seconds(self, now: float) -> float:
        """Return how long no byte came; ``now`` is in Unix seconds."""
        return max(now - self._progress_at, 0.0)

    def missing(self) -> list[ByteRange]:
        """Return the ranges that are not here, in order."""
        with self._lock:
            return list(self._received.missing(self.size_bytes))

    def write(self, start: int, chunks: Sequence[Bytes]) -> None:
        """Keep the bytes that begin at ``start``, where they are not here or being written already.

        Raises: NoUpload if it was dropped meanwhile; Unavailable if the disk refuses, some may be kept then.
        """
        with disk_errors(self._data_path.parent), self._claimed(start, start + sum(map(len, chunks))) as claimed:
            for handle, gap in claimed:
                pieces = _cut(chunks, gap.start - start, gap.end - start)
                _write_all(handle, pieces, gap.start)
                self._record(gap)
                self._hash(gap, pieces)

    def settle(self, keep: Callable[[Path], None]) -> bool:
        """If all bytes are here, check them, make them durable, and ``keep`` their file under another name.

        False if some are missing, or somebody else does it now. The partial blob is gone afterwards, its bytes kept
        or not, unless the disk refuses. Raises: DigestMismatch if they are not the blob's; Unavailable.
        """
        with self._lock:
            if self._state is not State.RECEIVING or self._received.total_bytes != self.size_bytes:
                return False
            self._state = State.CHECKING
        try:
            self._verify()
            keep(self._data_path)
        except DigestMismatch:
            self._remove()
            raise
        except BaseException:
            with self._lock:
                self._state = State.RECEIVING
            raise
        self._remove()
        return True

    def drop(self) -> bool:
        """Forget it, and remove its files; false if it is being checked, or is gone already. Raises: Unavailable."""
        with self._lock:
            if self._state is not State.RECEIVING:
                return False
            self._state = State.GONE
        self._remove()
        return True

    def _remove(self) -> None:
        with self._lock:
            self._state = State.GONE
        with disk_errors(self._data_path.parent):
            self._list_path.unlink(missing_ok=True)
            self._data_path.unlink(missing_ok=True)

    def _verify(self) -> None:
        with self._hashing, disk_errors(self._data_path.parent):
            self._hash_stored(self.size_bytes)
            found = self._hasher.hexdigest()
            if found != self.digest:
                raise DigestMismatch(f"the bytes hash to {found}, not to {self.digest}; upload them again")
            with _opened(self._data_path, os.O_RDONLY) as handle:
                os.fsync(handle)

    @contextmanager
    def _claimed(self, start: int, end: int) -> Iterator[list[tuple[int, ByteRange]]]:
        """Give what of the range nobody has written or writes, and the open file: they are the block's to write."""
        if end > self.size_bytes:
            raise ValueError(f"a blob of {self.size_bytes} bytes has none at {end - 1}")
        with self._lock:
            self._check_open()  # and not again after it: a file of this name may be another upload's by then
            gaps = list(ByteRanges([*self._received, *self._being_written]).missing(end, start))
            handle = os.open(self._data_path, os.O_WRONLY) if gaps else None
            self._being_written += gaps
        if handle is None:
            yield []
            return
        try:
            yield [(handle, gap) for gap in gaps]
        finally:
            os.close(handle)
            with self._lock:
                for gap in gaps:
                    self._being_written.remove(gap)

    def _check_open(self) -> None:
        if self._state is State.GONE:
            raise NoUpload

    def _record(self, written: ByteRange) -> None:
        line = f"{written.start}-{written.end}\n".encode("ascii")
        with self._lock:
            self._check_open()
            with _opened(self._list_path, os.O_WRONLY) as handle:
                _write_all(handle, [line], self._list_bytes)  # over what a full disk cut short
            self._list_bytes += len(line)
            self._received.add(*written)
            self._progress_at = time.time()

    def _hash(self, written: ByteRange, pieces: Sequence[Bytes]) -> None:
        """Hash what was just written if its turn has come, and some of what waited for it; else leave it to others."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            if self._hashed_bytes == written.start:
                for piece in pieces:
                    self._hasher.update(piece)
                self._hashed_bytes = written.end
            self._hash_stored(self._hashed_bytes + _HASHED_AT_ONCE_BYTES)
        finally:
            self._hashing.release()

    def _hash_stored(self, up_to: int) -> None:
        """Hash on from the file, as far as all bytes are there."""
        with self._lock:
            up_to = min(up_to, self._received.prefix_bytes)
        if up_to <= self._hashed_bytes:
            return
        with _opened(self._data_path, os.O_RDONLY) as handle:
            for block in ByteRange(self._hashed_bytes, up_to).parts(_BLOCK_BYTES):
                self._hasher.update(os.pread(handle, block.size_bytes, block.start))
                self._hashed_bytes = block.end


def name_of(digest: str, size_bytes: int) -> str:
    """Return what an upload is called: one that lies about the size of a blob is another upload."""
    return f"{digest}-{size_bytes}"


def parse_name(name: str) -> tuple[str, int]:
    """Return digest and size in bytes of an upload's name. Raises: ValueError if it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name[:80]!r} names no upload")
    return match[1], int(match[2])


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def _cut(chunks: Sequence[Bytes], start: int, end: int) -> list[Bytes]:
    """Return the bytes from ``start`` up to ``end`` of what the chunks are together; many small ones as one."""
    pieces: list[Bytes] = []
    at = 0
    for chunk in chunks:
        if piece := memoryview(chunk)[max(start - at, 0) : max(end - at, 0)]:
            pieces.append(piece)
        at += len(chunk)
    return pieces if len(pieces) <= _PIECES_AT_ONCE else [b"".join(pieces)]


def _write_all(handle: int, pieces: Sequence[Bytes], at: int) -> None:
    while pieces:
        count = os.pwritev(handle, pieces, at)
        at += count
        pieces = _cut(pieces, count, sum(map(len, pieces)))
