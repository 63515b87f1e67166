"""The server's clock: Unix time at the start, then monotonic, so that it never jumps and never runs backwards."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Anything that returns the time in seconds; tests bring their own."""

    def now(self) -> float:
        """Return the time: Unix seconds, never smaller than before."""


class SteadyClock:
    """Starts at the wall clock's time, or at ``not_before`` if the wall clock was set back since the last run."""

    def __init__(self, not_before: float = 0.0) -> None:
        self._offset_seconds = max(time.time(), not_before) - time.monotonic()

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return self._offset_seconds + time.monotonic()
