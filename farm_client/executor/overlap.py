"""Steps that go on while the update of those before them is on its way: the overlap of Streaming DiLoCo.

Source: Douillard et al., arXiv:2501.18512, section 2.2. There a fragment is sent, tau local steps are taken, and only
then is what came of it waited for. Here the last tau steps of a part are taken once its update is reported, so that the
next round, which begins with what came of it, begins tau steps after the fragment was sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Overlap:
    """The number of steps that are taken after an update is reported, and the parameters that the update holds."""

    steps: int = 0
    told: frozenset[str] = frozenset()

    def steps_of(self, all_steps: int) -> int:
        """Return how many of a part's steps follow its update; it waits for one of them at least."""
        return max(min(self.steps, all_steps - 1), 0)


NO_OVERLAP: Final = Overlap()


class LaterSteps:
    """The steps of the last assignment that its update did not wait for, until they are taken."""

    def __init__(self) -> None:
        self._left: Callable[[], None] | None = None
        self._seconds = 0.0

    def leave(self, rest: Callable[[], None] | None) -> None:
        """Leave what takes the steps; None where none are left. What was left before is given up."""
        self._left = rest

    def take(self) -> None:
        """Take them now, if there are any. Raises: as the steps of an assignment."""
        left, self._left = self._left, None
        if left is None:
            return
        began = time.perf_counter()
        left()
        self._seconds = time.perf_counter() - began

    def seconds(self) -> float:
        """Return how long those took that were taken last, once: they count as the next assignment's time."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
