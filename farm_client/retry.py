"""The one retry policy: how long to wait after the n-th failure in a row, and when to give up.

Exponential backoff with full jitter, so that a thousand clients do not return to a restarted server at once.
Source: Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), "full jitter".
"""

from __future__ import annotations

import random
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
        """Tell whether another try is due after so many failures in a row."""
        return self.tries is None or failures < self.tries

    def delay_seconds(self, failures: int) -> float:
        """Draw the wait before the next try; ``failures`` in a row is at least 1."""
        return random.uniform(0, self.bound_seconds(failures))  # noqa: S311  jitter is no secret

    def bound_seconds(self, failures: int) -> float:
        """Return the longest wait before the next try."""
        return min(self.first_seconds * self.growth ** min(failures - 1, MOST_GROWTHS), self.longest_seconds)


def about(seconds: float) -> float:
    """Draw a wait around the one that a farm asked for, so that those who were told the same do not come together."""
    return random.uniform(0.75 * seconds, 1.25 * seconds)  # noqa: S311  jitter is no secret


def later_than(seconds: float) -> float:
    """Draw a wait of at least ``seconds``, and up to a quarter more: who asks for a time is not to be asked before."""
    return random.uniform(seconds, 1.25 * seconds)  # noqa: S311  jitter is no secret
