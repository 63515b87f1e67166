"""A file in chunks, compressed where that is worthwhile."""

from __future__ import annotations

import io
from collections.abc import Iterable

from protocol.zstd import wrap
from storage.blob_batch import Chunk


class _Pieces:
    """Reads chunks as one file."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""
        while not self._rest.nbytes:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._rest = memoryview(following)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)


def wrapped(chunks: list[Chunk]) -> list[Chunk]:
    """Return the chunks as one zstd frame if that is a twentieth smaller, or else as they are."""
    target = io.BytesIO()
    return [target.getbuffer()] if wrap(_Pieces(chunks), target) else chunks
