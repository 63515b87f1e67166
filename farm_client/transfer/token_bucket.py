"""The rule of a rate limit, without a clock of its own: a token bucket that may go into debt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_BURST_SECONDS: Final = 0.1
"""What may pass at once after a pause, as time at the full rate: a link that others use too must not be flooded."""


@dataclass(slots=True)
class TokenBucket:
    """Lets ``rate`` bytes a second pass on average; all times are seconds on one clock.

    Over any time t no more than ``rate * t`` and one burst are taken by those who waited. What has come already, inside
    a message that nobody could hold back, is taken without waiting: that leaves a debt, which the next ones wait for.
    """

    rate: float
    filled_at: float
    """When ``level`` was worked out."""
    level: float = 0.0
    """Bytes that may pass; below 0 it is a debt."""

    @classmethod
    def full(cls, rate: float, now: float) -> TokenBucket:
        """Make one that lets a burst pass."""
        return cls(rate, now, max(1.0, rate * _BURST_SECONDS))

    @property
    def burst_bytes(self) -> float:
        """The most that passes at once without a debt."""
        return max(1.0, self.rate * _BURST_SECONDS)

    def wait_seconds(self, count: float, now: float) -> float:
        """Return how long to wait until ``count`` bytes, or as many as a burst, may be taken; 0 if they may be now."""
        self._fill(now)
        return max(0.0, (min(count, self.burst_bytes) - self.level) / self.rate)

    def take(self, count: float, now: float) -> None:
        """Take bytes, whether they waited or not."""
        self._fill(now)
        self.level -= count

    def change(self, rate: float, now: float) -> None:
        """Go on at another rate: a debt stays the same in bytes, what was saved up is at most the new burst."""
        self._fill(now)
        self.rate = rate
        self.level = min(self.level, self.burst_bytes)

    def _fill(self, now: float) -> None:
        self.level = min(self.burst_bytes, self.level + self.rate * max(0.0, now - self.filled_at))
        self.filled_at = now
