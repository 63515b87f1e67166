"""The state machines of tasks and assignments, as literal tables; an illegal move is a missing entry.

``docs/reference/states.md`` is drawn from these tables and a test fails when the two differ.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Final

from protocol.errors import FarmError


class TaskState(StrEnum):
    """Where a task is in its life."""

    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AssignmentState(StrEnum):
    """Where an assignment is in its life."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    RUNNING = "running"
    DELIVERED = "delivered"
    EXPIRED = "expired"
    REJECTED = "rejected"
    FAILED = "failed"


class IllegalTransition(FarmError):
    """The record's state machine has no such edge."""

    code: ClassVar[str] = "illegal_transition"


_T, _A = TaskState, AssignmentState

TASK_EDGES: Final = MappingProxyType(
    {
        _T.PENDING: frozenset({_T.ASSIGNED, _T.PAUSED, _T.FAILED, _T.CANCELLED}),
        _T.ASSIGNED: frozenset({_T.RUNNING, _T.PENDING, _T.PAUSED, _T.FAILED, _T.CANCELLED}),
        _T.RUNNING: frozenset({_T.PAUSED, _T.COMPLETED, _T.FAILED, _T.PENDING, _T.CANCELLED}),
        _T.PAUSED: frozenset({_T.PENDING, _T.RUNNING, _T.FAILED, _T.CANCELLED}),
        _T.FAILED: frozenset({_T.PENDING}),
        _T.COMPLETED: frozenset(),
        _T.CANCELLED: frozenset(),
    }
)

ASSIGNMENT_EDGES: Final = MappingProxyType(
    {
        _A.OFFERED: frozenset({_A.ACCEPTED, _A.EXPIRED, _A.REJECTED, _A.FAILED}),
        _A.ACCEPTED: frozenset({_A.RUNNING, _A.DELIVERED, _A.EXPIRED, _A.REJECTED, _A.FAILED}),
        _A.RUNNING: frozenset({_A.DELIVERED, _A.EXPIRED, _A.REJECTED, _A.FAILED}),
        _A.DELIVERED: frozenset(),
        _A.EXPIRED: frozenset(),
        _A.REJECTED: frozenset(),
        _A.FAILED: frozenset(),
    }
)

ACTIVE: Final = frozenset({_T.PENDING, _T.ASSIGNED, _T.RUNNING, _T.PAUSED})
"""States of a task that may still train."""
LIVE: Final = frozenset({_T.PENDING, _T.ASSIGNED, _T.RUNNING})
"""States of a task that clients may work on."""
ENDED: Final = frozenset({_T.COMPLETED, _T.FAILED, _T.CANCELLED})
HELD: Final = frozenset({_A.OFFERED, _A.ACCEPTED, _A.RUNNING})
"""States of an assignment whose client still holds the lease."""


def move_task(task_id: str, state: TaskState, to: TaskState) -> TaskState:
    """Return ``to`` if the task may go there.

    Raises: IllegalTransition naming the task and both states.
    """
    if to not in TASK_EDGES[state]:
        allowed = ", ".join(sorted(TASK_EDGES[state])) or "nothing: it is final"
        raise IllegalTransition(f"task {task_id} is {state} and cannot become {to} (allowed: {allowed})")
    return to


def move_assignment(assignment_id: str, state: AssignmentState, to: AssignmentState) -> AssignmentState:
    """Return ``to`` if the assignment may go there.

    Raises: IllegalTransition naming the assignment and both states.
    """
    if to not in ASSIGNMENT_EDGES[state]:
        allowed = ", ".join(sorted(ASSIGNMENT_EDGES[state])) or "nothing: it is final"
        raise IllegalTransition(f"assignment {assignment_id} is {state} and cannot become {to} (allowed: {allowed})")
    return to
