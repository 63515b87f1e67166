"""Retry as policy: how long to wait before the next try."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
    """

    base_seconds: float
    cap_seconds: float

    def longest_seconds(self, attempt: int) -> float:
        """Return the upper bound of the wait before try number ``attempt`` (1 is the first retry)."""
        exponent = min(max(attempt, 1) - 1, 63)
        return float(min(self.cap_seconds, self.base_seconds * 2**exponent))

    def delay_seconds(self, attempt: int, draw: float) -> float:
        """Return the wait before try number ``attempt``; ``draw`` is uniform in [0, 1)."""
        return draw * self.longest_seconds(attempt)
