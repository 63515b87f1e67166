"""What this machine moved today, over all runs of the agent: what its owner's daily quota is held against.

A day is one of the machine's local calendar. The count is written every few seconds and at the end; a power cut forgets
no more than that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import NonNegativeInt, ValidationError

from protocol.frozen import Frozen

_SAVE_EVERY_SECONDS: Final = 5.0


class DayCount(Frozen):
    """Bytes of blobs, sent and received together, on one day such as ``2026-11-27``."""

    day: str = ""
    moved_bytes: NonNegativeInt = 0


def local_now() -> datetime:
    """Return the time by the machine's clock and calendar."""
    return datetime.now().astimezone()


class TransferBook:
    """Counts, and keeps the count in a file. A disk that takes no file is put up with: then a restart forgets."""

    def __init__(self, path: Path, now: Callable[[], datetime] = local_now) -> None:
        self._path = path
        self._now = now
        self._count = _read(path)
        self._counted_bytes = 0
        self._saved_at = 0.0

    def moved_today(self) -> int:
        """Return how many bytes moved today."""
        return self._count.moved_bytes if self._count.day == self._today() else 0

    def count(self, moved_bytes: int) -> None:
        """Take in how many bytes have moved since this book was opened; what is new of it counts for today."""
        new_bytes, self._counted_bytes = max(0, moved_bytes - self._counted_bytes), moved_bytes
        if not new_bytes:
            return
        self._count = DayCount(day=self._today(), moved_bytes=self.moved_today() + new_bytes)
        if time.monotonic() - self._saved_at >= _SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the count."""
        self._saved_at = time.monotonic()
        unfinished = self._path.with_suffix(".new")
        with suppress(OSError):
            unfinished.write_text(self._count.model_dump_json())
            unfinished.replace(self._path)

    def _today(self) -> str:
        return self._now().date().isoformat()


def _read(path: Path) -> DayCount:
    try:
        return DayCount.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return DayCount()
