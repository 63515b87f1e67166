"""The bytes of one part on their way into a partial blob."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Final, Self

from protocol.ranges import ByteRange
from storage.errors import NoUpload, disk_errors
from storage.partial_blob import PartialBlob

Bytes = bytes | memoryview
_FLUSHED_AT_ONCE_BYTES: Final = 8 * 1024 * 1024
_PIECES_AT_ONCE: Final = 64
"""The system takes no more than some hundred."""


class PartWriter:
    """The files of one part on its way, open until ``close``; used by one thread after the other."""

    def __init__(self, partial: PartialBlob) -> None:
        self._partial = partial
        self._folder = partial.folder
        self._writing = threading.Lock()
        self._unflushed = ByteRange(0, 0)
        with disk_errors(self._folder):
            self._handles: tuple[int, int] | None = partial.open_files()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, start: int, chunks: Sequence[Bytes]) -> None:
        """Keep the bytes that begin at ``start``, where they are not here or being written already.

        Raises: NoUpload if the upload was dropped, or this closed; Unavailable if the disk refuses, some may be kept.
        """
        end = start + sum(map(len, chunks))
        with self._writing, disk_errors(self._folder), self._partial.claimed(start, end) as gaps:
            if self._handles is None:
                raise NoUpload
            data, _ = self._handles
            for gap in gaps:
                _write_all(data, _cut(chunks, gap.start - start, gap.end - start), gap.start)
                self._partial.record(self._handles, gap)
            self._start_flushing(data, start, end)

    def _start_flushing(self, data: int, start: int, end: int) -> None:
        """Let the disk begin with what was written, now and then: the sync at the end has less to wait for."""
        self._unflushed = ByteRange(self._unflushed.start if self._unflushed.end == start else start, end)
        if self._unflushed.size_bytes >= _FLUSHED_AT_ONCE_BYTES and hasattr(os, "posix_fadvise"):
            # Linux starts to write these pages, waits for none, and keeps what it is writing in memory.
            os.posix_fadvise(data, self._unflushed.start, self._unflushed.size_bytes, os.POSIX_FADV_DONTNEED)
            self._unflushed = ByteRange(end, end)

    def close(self) -> None:
        """Close the files, once no thread writes any more."""
        with self._writing:
            for handle in self._handles or ():
                os.close(handle)
            self._handles = None


def write_part(partial: PartialBlob, start: int, chunks: Sequence[Bytes]) -> None:
    """Keep a part that is here as a whole. Raises: as ``PartWriter``."""
    with PartWriter(partial) as writer:
        writer.write(start, chunks)


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
