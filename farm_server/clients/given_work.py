"""Which assignments one connection was given lately: what their code printed is kept after they have ended, too."""

from __future__ import annotations

from typing import Final, NamedTuple

from protocol.assignments import Assign

_REMEMBERED: Final = 64
"""As many as a client may hold."""


class WorkOf(NamedTuple):
    """What a line that was printed is of."""

    task_id: str
    round: int


class GivenWork:
    """The newest assignments of a connection, by id."""

    def __init__(self) -> None:
        self._given: dict[str, WorkOf] = {}

    def add(self, assign: Assign) -> None:
        """Remember an assignment that is sent; the oldest is forgotten."""
        self._given[assign.assignment_id] = WorkOf(assign.task.task_id, assign.round)
        if len(self._given) > _REMEMBERED:
            del self._given[next(iter(self._given))]

    def find(self, assignment_id: str) -> WorkOf | None:
        """Return what an assignment is of."""
        return self._given.get(assignment_id)
