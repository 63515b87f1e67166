"""Where an assignment belongs, by its id: what progress, logs and results need and do not carry themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.records import AssignmentRecord
from protocol.messages import Assign, Kind

_REMEMBERED = 65_536


@dataclass(frozen=True, slots=True)
class Placement:
    """The client that an assignment was sent to, and its task and round."""

    client_id: str
    task_id: str
    round: int
    kind: Kind


class Placements:
    """Remembers the assignments that were sent, the newest ``_REMEMBERED`` of them."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Placement] = OrderedDict()

    def add(self, client_id: str, assign: Assign) -> None:
        """Remember an assignment as it goes out."""
        self._by_id[assign.assignment_id] = Placement(client_id, assign.task.task_id, assign.round, assign.kind)
        if len(self._by_id) > _REMEMBERED:
            self._by_id.popitem(last=False)

    def restore(self, held: Iterable[AssignmentRecord]) -> None:
        """Remember what an earlier life of the server had sent: its clients may have finished it meanwhile."""
        for record in held:
            self._by_id[record.assignment_id] = Placement(record.client_id, record.task_id, record.round, record.kind)

    def forget(self, task_id: str) -> None:
        """Forget the assignments of a task that was removed."""
        for assignment_id in [a for a, placement in self._by_id.items() if placement.task_id == task_id]:
            del self._by_id[assignment_id]

    def find(self, client_id: str, assignment_id: str) -> Placement | None:
        """Return where the assignment belongs, if it was sent to this client."""
        placement = self.find_any(assignment_id)
        return placement if placement and placement.client_id == client_id else None

    def find_any(self, assignment_id: str) -> Placement | None:
        """Return where the assignment belongs, whoever has it."""
        return self._by_id.get(assignment_id)
