"""The simulated clock: what is due next, and nothing ever waits for real."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """A queue of actions by due time; equal times in the order in which they were planned."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Plan an action for a moment, or for now if that has passed."""
        self._planned += 1
        heapq.heappush(self._due, (max(when, self.now), self._planned, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Plan an action for later."""
        self.at(self.now + seconds, action)

    def step(self) -> None:
        """Move the clock to the next action and do it."""
        self.now, _, action = heapq.heappop(self._due)
        action()
