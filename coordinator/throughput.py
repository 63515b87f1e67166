"""Moving averages of measured rates."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite


@dataclass(slots=True)
class MovingAverage:
    """An exponentially weighted mean; ``None`` before the first measurement."""

    value: float | None = None
    weight: float = 0.3
    """The share of the newest measurement."""

    def add(self, measured: float) -> None:
        """Take in one measurement; what is no number leaves it as it is."""
        if not isfinite(measured):
            return
        self.value = measured if self.value is None else self.value + self.weight * (measured - self.value)


@dataclass(slots=True)
class DecayingSum:
    """A sum whose past halves every ``half_life_seconds``: what somebody used of the farm lately."""

    half_life_seconds: float
    total: float = 0.0
    at: float = 0.0

    def add(self, amount: float, now: float) -> None:
        """Add ``amount`` as of ``now``; what is no amount adds nothing."""
        self.total = self.read(now) + (amount if 0 < amount < inf else 0.0)
        self.at = now

    def read(self, now: float) -> float:
        """Return the sum as of ``now``."""
        half_lives = max(now - self.at, 0.0) / self.half_life_seconds
        return self.total * float(0.5**half_lives)
