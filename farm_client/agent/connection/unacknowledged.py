"""Reports that are not known to have arrived: they are sent again over the next connection."""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import Final

from protocol.assignments import Progress, Reject
from protocol.messages import Error

_MAX_OUTPUTS: Final = 64
"""Of what the tasks' code printed, only the newest messages outlive a connection."""

Report = Error | Reject | Progress
"""How an assignment ended, or what its code printed."""


class Unacknowledged:
    """Messages in the order in which they were sent, until proof that they arrived.

    Every message said has a number; ``proven`` takes the number up to which all have arrived. Endings are never
    dropped: there is one for each assignment that ended since the last proof.
    """

    def __init__(self) -> None:
        self._said = 0
        self._asked = 0
        self._endings: deque[tuple[int, Error | Reject]] = deque()
        self._outputs: deque[tuple[int, Progress]] = deque(maxlen=_MAX_OUTPUTS)

    def add(self, message: Report) -> None:
        """Keep a message that is being sent."""
        self._said += 1
        if isinstance(message, Progress):
            self._outputs.append((self._said, message))
        else:
            self._endings.append((self._said, message))

    def ask(self) -> int | None:
        """Return the number of the last message, if no ping was sent for it yet."""
        if self._asked == self._said:
            return None
        self._asked = self._said
        return self._said

    def proven(self, number: int) -> None:
        """All messages up to this one have arrived: forget them."""
        for kept in (self._endings, self._outputs):
            while kept and kept[0][0] <= number:
                kept.popleft()

    def messages(self) -> list[Report]:
        """Return what is not known to have arrived, the oldest first."""
        kept: list[tuple[int, Report]] = sorted(chain(self._endings, self._outputs), key=lambda pair: pair[0])
        return [message for _, message in kept]

    def endings(self) -> list[Error | Reject]:
        """Return how assignments ended, as far as the report is not known to have arrived."""
        return [ending for _, ending in self._endings]

    def clear(self) -> None:
        """Drop all: they are being sent over another connection, which keeps them."""
        self._endings.clear()
        self._outputs.clear()
