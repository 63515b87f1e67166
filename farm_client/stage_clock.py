"""Where an assignment's time goes: seconds by stage, for the result's ``stage_seconds``."""

from __future__ import annotations

import time
from collections.abc import Callable


class StageClock:
    """Counts seconds from its making on: each stage lasts from the end of the one before it."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """``now`` is in seconds."""
        self._now = now
        self._since = now()
        self.seconds: dict[str, float] = {}
        """By stage; one that came several times has the sum."""

    def skip(self) -> None:
        """Count the time since the last stage ended to none."""
        self._since = self._now()

    def ended(self, stage: str) -> None:
        """Count the time since the last stage ended to this one."""
        now = self._now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
