"""A blob of which only some bytes are here yet: a sparse file, and beside it a list of what was received.

    NAME.part      the bytes, each at its place; as long as the blob from the start
    NAME.ranges    which of them were written: a line such as ``0-1048576`` (half-open) for each write

After a power cut the list may know more than the file holds: in the end the digest decides. No byte is written twice by
one process: what was hashed is what the file holds.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Final, Self

from protocol.digests import new_hasher
from protocol.errors import DigestMismatch
from protocol.ranges import ByteRange, ByteRanges
from storage.errors import NoUpload, disk_errors

_NAME: Final = re.compile(r"([0-9a-f]{64})-(\d{1,18})", re.ASCII)
_BLOCK_BYTES: Final = 1024 * 1024
_STRIDE_BYTES: Final = 4 * _BLOCK_BYTES
"""What is worth going on for: each step costs the threads a change of the one that may run Python."""
_AT_ONCE_BYTES: Final = 16 * _BLOCK_BYTES
"""What one writer may be kept for, where much arrived before the bytes in front of it, or before a restart."""


class ReceivedList:
    """The file of the ranges that were written. Methods may be called from any thread; OSError if the disk refuses.

    A range is put down after its bytes were written, so that a process killed at any moment claims nothing that it has
    not. A line without its end does not count; the next one is written over it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size_bytes = 0
        self._appending = threading.Lock()

    def create(self) -> None:
        """Make a file that names no byte."""
        self.path.write_bytes(b"")

    def load(self) -> ByteRanges:
        """Return what a former process put down. Raises: ValueError if the file is no such list."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        self._size_bytes = sum(len(line) + 1 for line in lines)
        return ByteRanges(pair for line in lines for pair in ByteRanges.parse(line.decode("ascii")))

    def append(self, handle: int, written: ByteRange) -> None:
        """Put down one range more; ``handle`` is the open file."""
        line = f"{written.start}-{written.end}\n".encode("ascii")
        with self._appending:
            done = 0
            while done < len(line):
                done += os.pwrite(handle, line[done:], self._size_bytes + done)
            self._size_bytes += len(line)


class PrefixHash:
    """The hash of a file that fills up from several places: it follows the part that is whole from the start.

    It reads what was just written, while the system still has it in memory. Methods may be called from any thread, and
    are given the file, open for reading. They raise OSError.
    """

    def __init__(self) -> None:
        self._hasher = new_hasher()
        self._hashed_bytes = 0
        self._hashing = threading.Lock()

    def follow(self, handle: int, prefix_bytes: int) -> None:
        """Hash some of the first ``prefix_bytes`` of the file, unless another thread does."""
        if prefix_bytes - self._hashed_bytes < _STRIDE_BYTES or not self._hashing.acquire(blocking=False):
            return
        try:
            self._go_on(handle, min(prefix_bytes, self._hashed_bytes + _AT_ONCE_BYTES))
        finally:
            self._hashing.release()

    def hexdigest(self, handle: int, size_bytes: int) -> str:
        """Hash the rest of a file that is whole, and return its digest."""
        with self._hashing:
            self._go_on(handle, size_bytes)
            return self._hasher.hexdigest()

    def _go_on(self, handle: int, up_to: int) -> None:
        block = memoryview(bytearray(min(_BLOCK_BYTES, max(up_to - self._hashed_bytes, 0))))
        while self._hashed_bytes < up_to:
            count = os.preadv(handle, [block[: up_to - self._hashed_bytes]], self._hashed_bytes)
            if not count:
                return  # somebody cut the file; its digest will tell
            self._hasher.update(block[:count])
            self._hashed_bytes += count


class PartialState(Enum):
    """What becomes of a partial blob."""

    RECEIVING = auto()
    CHECKING = auto()
    """All bytes are here; somebody hashes the rest of them and gives them their name."""
    GONE = auto()


class PartialBlob:
    """One blob on its way in. All methods may be called from any number of threads; those that touch the disk block."""

    def __init__(self, folder: Path, digest: str, size_bytes: int) -> None:
        self.digest = digest
        self.size_bytes = size_bytes
        self.name = name_of(digest, size_bytes)
        self.folder = folder
        self._path = folder / f"{self.name}.part"
        self._list = ReceivedList(folder / f"{self.name}.ranges")
        self._hash = PrefixHash()
        self._received = ByteRanges()
        self._being_written: list[ByteRange] = []
        self._lock = threading.Lock()
        """Held for moments, never while the disk is waited for."""
        self._state = PartialState.RECEIVING
        self._progress_at = time.time()

    @classmethod
    def create(cls, folder: Path, digest: str, size_bytes: int) -> Self:
        """Make the files of a blob of which nothing is here. Raises: Unavailable if the disk refuses."""
        partial = cls(folder, digest, size_bytes)
        with disk_errors(folder):
            partial._list.create()
            with partial._path.open("wb") as file:
                file.truncate(size_bytes)
        return partial

    @classmethod
    def load(cls, folder: Path, digest: str, size_bytes: int) -> Self | None:
        """Take up what a former process left; None if its files are not as they should be. Raises: Unavailable."""
        partial = cls(folder, digest, size_bytes)
        with disk_errors(folder):
            try:
                partial._received = partial._list.load()
                partial._progress_at = partial._list.path.stat().st_mtime
                fits = partial._path.stat().st_size == size_bytes
            except (ValueError, FileNotFoundError):
                return None
        return partial if fits and all(end <= size_bytes for _, end in partial._received) else None

    @property
    def received_bytes(self) -> int:
        """Count the bytes that are here."""
        with self._lock:
            return self._received.total_bytes

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here; their digest is not checked yet."""
        return self.received_bytes == self.size_bytes

    @property
    def is_checked(self) -> bool:
        """Whether all bytes are here, and somebody checks them now."""
        return self._state is PartialState.CHECKING

    @property
    def is_gone(self) -> bool:
        """Whether it was dropped, or became a blob."""
        return self._state is PartialState.GONE

    def idle_seconds(self, now: float) -> float:
        """Return how long no byte came; ``now`` is in Unix seconds."""
        return max(now - self._progress_at, 0.0)

    def missing(self) -> list[ByteRange]:
        """Return the ranges that are not here, in order."""
        with self._lock:
            return list(self._received.missing(self.size_bytes))

    def settle(self, keep: Callable[[Path], None]) -> bool:
        """If all bytes are here, check them, make them durable, and ``keep`` their file under another name.

        False if some are missing, or somebody else does it now. The partial blob is gone afterwards, its bytes kept
        or not, unless the disk refuses. Raises: DigestMismatch if they are not the blob's; Unavailable.
        """
        with self._lock:
            if self._state is not PartialState.RECEIVING or self._received.total_bytes != self.size_bytes:
                return False
            self._state = PartialState.CHECKING
        try:
            self._verify()
            keep(self._path)
        except DigestMismatch:
            self._remove()
            raise
        except BaseException:
            with self._lock:
                self._state = PartialState.RECEIVING
            raise
        self._remove()
        return True

    def drop(self) -> bool:
        """Drop it, and remove its files; false if it is being checked, or is gone already. Raises: Unavailable."""
        with self._lock:
            if self._state is not PartialState.RECEIVING:
                return False
            self._state = PartialState.GONE
        self._remove()
        return True

    def _remove(self) -> None:
        with self._lock:
            self._state = PartialState.GONE
        with disk_errors(self.folder):
            self._list.path.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)

    def _verify(self) -> None:
        with disk_errors(self.folder), self._path.open("rb") as file:
            found = self._hash.hexdigest(file.fileno(), self.size_bytes)
            if found != self.digest:
                raise DigestMismatch(f"the bytes hash to {found}, not to {self.digest}; upload them again")
            os.fsync(file.fileno())

    def open_files(self) -> tuple[int, int]:
        """Open the data's and the list's file, for ``PartWriter``. Raises: NoUpload if it wants no bytes any more."""
        with self._lock:
            if self._state is not PartialState.RECEIVING:  # once open they are its own, whoever has the name later
                raise NoUpload
            data = os.open(self._path, os.O_RDWR)
            try:
                return data, os.open(self._list.path, os.O_WRONLY)
            except OSError:
                os.close(data)
                raise

    @contextmanager
    def claimed(self, start: int, end: int) -> Iterator[list[ByteRange]]:
        """Give what of the range nobody has written or writes: it is the block's to write. Raises: NoUpload."""
        if end > self.size_bytes:
            raise ValueError(f"a blob of {self.size_bytes} bytes has none at {end - 1}")
        with self._lock:
            self._check_open()
            gaps = list(ByteRanges([*self._received, *self._being_written]).missing(end, start))
            self._being_written += gaps
        try:
            yield gaps
        finally:
            with self._lock:
                for gap in gaps:
                    self._being_written.remove(gap)

    def record(self, files: tuple[int, int], written: ByteRange) -> None:
        """Put down that a claimed range is written, and hash on where that makes sense.

        ``files`` are those of ``open_files``. Raises: NoUpload; OSError.
        """
        data, listed = files
        self._list.append(listed, written)
        with self._lock:
            self._check_open()
            self._received.add(*written)
            self._progress_at = time.time()
            prefix_bytes = self._received.prefix_bytes
        self._hash.follow(data, prefix_bytes)

    def _check_open(self) -> None:
        if self._state is PartialState.GONE:
            raise NoUpload


def name_of(digest: str, size_bytes: int) -> str:
    """Return what an upload is called: one that lies about the size of a blob is another upload."""
    return f"{digest}-{size_bytes}"


def parse_name(name: str) -> tuple[str, int]:
    """Return digest and size in bytes of an upload's name. Raises: ValueError if it is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name[:80]!r} names no upload")
    return match[1], int(match[2])
