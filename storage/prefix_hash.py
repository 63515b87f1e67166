"""The hash of a file that fills up from several places: it follows the part that is whole from the start."""

from __future__ import annotations

import os
import threading
from typing import Final

from protocol.digests import new_hasher

_BLOCK_BYTES: Final = 1024 * 1024
_STRIDE_BYTES: Final = 4 * _BLOCK_BYTES
"""What is worth going on for: each step costs the threads a change of the one that may run Python."""
_AT_ONCE_BYTES: Final = 16 * _BLOCK_BYTES
"""What one writer may be kept for, where much arrived before the bytes in front of it, or before a restart."""


class PrefixHash:
    """Reads what was just written, while the system still has it in memory.

    Methods may be called from any thread, and are given the file, open for reading. They raise OSError.
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
