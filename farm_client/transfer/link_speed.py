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

    def clear(self) -> None:
        """Forget what was measured."""
        self._latest.clear()

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

    Transfers that share the link are one spell, so that its speed is theirs together. A spell in which something waited
    for its owner's limit tells of the limit, and is kept apart. Use it from one thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._free, self._held_back = RecentMedian(), RecentMedian()
        self._under_way = 0
        self._began_at = 0.0
        self._bytes = 0
        self._was_held_back = False
        self._limit: float | None = None

    @property
    def link_bytes_per_second(self) -> float:
        """Return what the link itself does; 0 before a spell with enough bytes that no limit held back."""
        return self._free.value

    @property
    def bytes_per_second(self) -> float:
        """Return what can be counted on: the link's speed, or the owner's limit where that is less; 0 if none is known.

        Where the link itself could not be measured yet, it is what came about under the limit.
        """
        if self._limit is None:
            return self._free.value
        return min(self._free.value, self._limit) if self._free.value else self._held_back.value

    def limited_to(self, bytes_per_second: float | None) -> None:
        """The owner has set this limit; what was measured under another one says nothing any more."""
        self._limit = bytes_per_second or None
        self._held_back.clear()
        self._was_held_back = self._was_held_back or self._under_way > 0

    def held_back(self) -> None:
        """Note that something waited for the owner's limit just now."""
        self._was_held_back = True

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Count the block as a transfer under way, whatever ends it."""
        if not self._under_way:
            self._began_at, self._bytes, self._was_held_back = self._now(), 0, False
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
            (self._held_back if self._was_held_back else self._free).add(self._bytes / seconds)
