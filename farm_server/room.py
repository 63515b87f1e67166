"""How much space the data folder's disk has left, and what may still be written to it.

Bulk stops before the disk is full, in two steps: first what comes from outside, then new versions of weights; so the
ledger, which needs little, can be written to the last.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from protocol.errors import Unavailable

_RESERVE_SHARE = 0.25
"""Of ``min_free_bytes``: what not even a checkpoint may take."""


class Room:
    """Watches one folder. Safe on any thread; each question is one system call."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes

    def lacks(self, size_bytes: int = 0) -> str | None:
        """Say that no bulk (of this size) is taken from outside now, or return None."""
        return self._short_of(self._min_free_bytes + size_bytes)

    def claim(self, size_bytes: int) -> None:
        """Check that a checkpoint of this size may be written. Raises: Unavailable."""
        if (reason := self._short_of(int(self._min_free_bytes * _RESERVE_SHARE) + size_bytes)) is not None:
            raise Unavailable(reason)

    def _short_of(self, needed_bytes: int) -> str | None:
        try:
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            return f"the data folder {self._folder} can't be used: {error.strerror or error}; check its disk"
        if free >= needed_bytes:
            return None
        return f"only {free} bytes are free in {self._folder} and {needed_bytes} must be; free some space"


Claim = Callable[[int], None]
"""Asks for room for so many bytes. Raises: Unavailable."""
