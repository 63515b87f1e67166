"""How fast a link is in one direction, by the transfers that there are anyway: nothing is sent to measure it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

LEAST_BYTES: Final = 256 * 1024
"""Less tells how far away the farm is, and not how fast the link."""
KEPT: Final = 9
"""Measurements that count: the median of so many bears a few that something else slowed down."""


class RecentMedian:
    """The median of the latest ``KEPT`` measurements over 0; 0 before the first one."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=KEPT)

    def add(self, measured: float) -> None:
        """Take in one measurement; 0 is none: the clock told nothing."""
        if measured > 0:
            self._latest.append(measured)

    @property
    def value(self) -> float:
        """Return the median."""
        return median(self._latest) if self._latest else 0.0


class LinkSpeed:
    """The median speed of the latest spells. A spell lasts as long as at least one transfer is under way.

    Transfers that share the link are one spell, so that its speed is theirs together. Use it from one thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._speeds = RecentMedian()
        self._under_way = 0
        self._began_at = 0.0
        self._bytes = 0

    @property
    def bytes_per_second(self) -> float:
        """Return the median; 0 before a spell with enough bytes has ended."""
        return self._speeds.value

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Count the block as a transfer under way, whatever ends it."""
        if not self._under_way:
            self._began_at, self._bytes = self._now(), 0
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._end_spell()

    def moved(self, size_bytes: int) -> None:
        """Count bytes that moved just now."""
        self._bytes += size_bytes

    def _end_spell(self) -> None:
        seconds = self._now() - self._began_at
        if self._bytes >= LEAST_BYTES and seconds > 0:
            self._speeds.add(self._bytes / seconds)
