"""The one retry policy: how long to wait after the n-th failure in a row, and when to give up.

Exponential backoff with full jitter, so that a thousand clients do not return to a restarted server at once.
Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").

Pure: whoever waits draws the jitter. A ``draw`` is uniform in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_GROWTHS: Final = 200
"""Beyond it every bound is the longest; no power overflows."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Waits drawn evenly from 0 to ``first_seconds * growth**n``, that bound never above ``longest_seconds``.

    After an outage the next wait is at most about ``2 * (growth - 1)`` of what was waited so far.
    ``tries`` counts the first one; None tries for ever.
    """

    first_seconds: float
    longest_seconds: float
    tries: int | None = None
    growth: float = 2.0

    def allows(self, failures: int) -> bool:
        """Return whether another try is due after so many failures in a row."""
        return self.tries is None or failures < self.tries

    def bound_seconds(self, failures: int) -> float:
        """Return the longest wait before the next try; fewer than one failure in a row count as one."""
        growths = min(max(failures, 1) - 1, MOST_GROWTHS)
        return min(self.first_seconds * self.growth**growths, self.longest_seconds)

    def delay_seconds(self, failures: int, draw: float) -> float:
        """Return the wait before the next try, after so many failures in a row."""
        return draw * self.bound_seconds(failures)


def about(seconds: float, draw: float) -> float:
    """Return a wait up to a quarter off the given one: peers with the same wait do not come together."""
    return (0.75 + 0.5 * draw) * seconds


def later_than(seconds: float, draw: float) -> float:
    """Return a wait of at least ``seconds``, and up to a quarter more: a requested wait is a minimum."""
    return (1.0 + 0.25 * draw) * seconds
