"""What a client holds, found by what it says: an assignment's id and fence, and nobody's but its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from coordinator.records import AssignmentRecord
from coordinator.state import Lease, TaskRun
from coordinator.turn import Turn
from protocol.messages import Ack


class Named(Protocol):
    """What a client says of an assignment."""

    @property
    def client_id(self) -> str:
        """Who says it."""

    @property
    def assignment_id(self) -> str:
        """Of which assignment."""

    @property
    def fence(self) -> int:
        """The token of the lease that it believes to hold."""


class Answer(Named, Protocol):
    """What a client says to end an assignment."""

    @property
    def incarnation(self) -> int:
        """The number of its connection."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A client names an assignment."""

    client_id: str
    assignment_id: str
    fence: int


def find_held(turn: Turn, event: Named) -> tuple[TaskRun, Lease] | None:
    """Find a lease of that client on a part of an open step."""
    found = turn.farm.lease(event.assignment_id, event.fence)
    return (found[0], found[2]) if found and found[2].record.client_id == event.client_id else None


def find_late(turn: Turn, event: Named) -> tuple[TaskRun, Lease] | None:
    """Find what that client still does for a round that is committed."""
    return _own(turn.farm.late(event.assignment_id, event.fence), event.client_id)


def find_ahead(turn: Turn, event: Named) -> tuple[TaskRun, Lease] | None:
    """Find what that client does for a round to come."""
    return _own(turn.farm.ahead(event.assignment_id, event.fence), event.client_id)


def find_dormant(turn: Turn, event: Named) -> tuple[TaskRun, AssignmentRecord] | None:
    """Find what that client goes on with although somebody else may have begun it too."""
    found = turn.farm.dormant(event.assignment_id, event.fence)
    return (found[0], found[2]) if found and found[2].client_id == event.client_id else None


def _own(found: tuple[TaskRun, Lease] | None, client_id: str) -> tuple[TaskRun, Lease] | None:
    return found if found and found[1].record.client_id == client_id else None


def settle_uncounted(turn: Turn, event: Answer, why: str) -> None:
    """Let the client forget it; what is in an open step already is settled when the round commits."""
    client = turn.farm.current(event.client_id, event.incarnation)
    if client is not None and not turn.farm.is_delivered(event.assignment_id):
        turn.send(client, Ack(assignment_id=event.assignment_id, fence=event.fence, counted=False, message=why))
