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
        bound = self.first_seconds * self.growth ** min(failures - 1, MOST_GROWTHS)
        return random.uniform(0, min(bound, self.longest_seconds))  # noqa: S311  jitter is no secret


RECONNECT: Final = RetryPolicy(first_seconds=0.5, longest_seconds=30.0, growth=1.1)
"""Slow to grow: a server that restarts is back in seconds, and work must go on within five of its start. A wait stays
about two seconds at most for the first five of an outage, and reaches half a minute after some minutes."""
TRANSFER: Final = RetryPolicy(first_seconds=0.2, longest_seconds=10.0, tries=8)

STEADY_SECONDS: Final = 3.0
"""A connection that held for so long was a success, whatever ended it: at this pace nobody is stormed."""
BRIEF: Final = RetryPolicy(first_seconds=0.5, longest_seconds=30.0)
"""Quick to grow: each of these tries cost the farm a whole join."""


class Reconnecting:
    """How long to wait before the next connection: by what went wrong since the farm last let this client in.

    A welcome ends an outage: the wait that had grown is forgotten. Only connections that end soon after their
    welcome, one after another, keep counting, so that a farm that welcomes and drops at once is not stormed.
    """

    def __init__(self) -> None:
        self._unreached = 0
        self._brief = 0

    def failed(self) -> None:
        """Count a try that led to no welcome."""
        self._unreached += 1

    def ended(self, held_seconds: float) -> None:
        """Count a connection that was welcomed and held for so long."""
        self._unreached = 0
        self._brief = 0 if held_seconds >= STEADY_SECONDS else self._brief + 1

    def delay_seconds(self) -> float:
        """Draw the wait before the next try."""
        outage = RECONNECT.delay_seconds(max(1, self._unreached))
        return max(outage, BRIEF.delay_seconds(self._brief)) if self._brief else outage
