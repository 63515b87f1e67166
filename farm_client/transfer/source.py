"""Where the bytes of an upload come from: memory, or a file that is read where it is needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from protocol.errors import FarmError

Content = bytes | Path
"""A blob's bytes, or the file that holds them."""


def size_of(content: Content) -> int:
    """Return the blob's size in bytes. Raises: OSError."""
    return content.stat().st_size if isinstance(content, Path) else len(content)


class UploadSource(Protocol):
    """A blob that is to be sent. Close it."""

    size_bytes: int

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``; may block, and be called from several threads.

        Raises: FarmError if a file has become shorter; OSError.
        """

    def close(self) -> None:
        """Let a file go."""


def open_source(content: Content) -> UploadSource:
    """Open what is to be sent. Raises: OSError if it is a file that cannot be opened."""
    return _FileSource(content) if isinstance(content, Path) else _MemorySource(content)


class _MemorySource:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def read(self, start: int, count: int) -> bytes:
        return self._data[start : start + count]

    def close(self) -> None:
        """Nothing is held."""


class _FileSource:
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size_bytes = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, count: int) -> bytes:
        data = os.pread(self._file.fileno(), count, start)
        if len(data) < count:
            raise FarmError(f"{self._file.name} became shorter while it was being sent; make it anew")
        return data

    def close(self) -> None:
        self._file.close()
