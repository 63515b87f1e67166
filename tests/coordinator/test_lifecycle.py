from __future__ import annotations

import itertools

import pytest

from coordinator.lifecycle import (
    ACTIVE,
    ASSIGNMENT_EDGES,
    ENDED,
    HELD,
    TASK_EDGES,
    AssignmentState,
    IllegalTransition,
    TaskState,
    move_assignment,
    move_task,
)

# Written out a second time on purpose: a changed edge has to be changed here as well.
LEGAL_TASK_MOVES = {
    "pending": "assigned paused failed cancelled",
    "assigned": "running pending paused failed cancelled",
    "running": "paused completed failed pending cancelled",
    "paused": "pending running failed cancelled",
    "failed": "pending",
    "completed": "",
    "cancelled": "",
}
LEGAL_ASSIGNMENT_MOVES = {
    "offered": "accepted expired rejected failed",
    "accepted": "running delivered expired rejected failed",
    "running": "delivered expired rejected failed",
    "delivered": "",
    "expired": "",
    "rejected": "",
    "failed": "",
}


@pytest.mark.parametrize(("state", "to"), list(itertools.product(TaskState, TaskState)))
def test_every_pair_of_task_states(state: TaskState, to: TaskState) -> None:
    if to in LEGAL_TASK_MOVES[state].split():
        assert move_task("t1", state, to) is to
        return
    with pytest.raises(IllegalTransition, match=f"task t1 is {state} and cannot become {to}"):
        move_task("t1", state, to)


@pytest.mark.parametrize(("state", "to"), list(itertools.product(AssignmentState, AssignmentState)))
def test_every_pair_of_assignment_states(state: AssignmentState, to: AssignmentState) -> None:
    if to in LEGAL_ASSIGNMENT_MOVES[state].split():
        assert move_assignment("a1", state, to) is to
        return
    with pytest.raises(IllegalTransition, match=f"assignment a1 is {state} and cannot become {to}"):
        move_assignment("a1", state, to)


def test_the_tables_cover_every_state() -> None:
    assert set(TASK_EDGES) == set(TaskState)
    assert set(ASSIGNMENT_EDGES) == set(AssignmentState)


def test_an_illegal_move_says_what_is_allowed() -> None:
    with pytest.raises(IllegalTransition, match="allowed: pending"):
        move_task("t1", TaskState.FAILED, TaskState.RUNNING)
    with pytest.raises(IllegalTransition, match="nothing: it is final"):
        move_task("t1", TaskState.COMPLETED, TaskState.RUNNING)


def test_every_task_is_active_or_ended_and_only_ended_ones_are_final() -> None:
    assert set(TaskState) == ACTIVE | ENDED
    assert not ACTIVE & ENDED
    assert {state for state, edges in TASK_EDGES.items() if not edges} == ENDED - {TaskState.FAILED}


def test_exactly_the_held_assignments_can_still_move() -> None:
    assert {state for state, edges in ASSIGNMENT_EDGES.items() if edges} == HELD


def test_every_task_state_is_reached_and_every_active_one_can_end() -> None:
    assert reachable(TaskState.PENDING) == set(TaskState)
    assert all(TaskState.CANCELLED in reachable(state) for state in ACTIVE)


def reachable(start: TaskState) -> set[TaskState]:
    seen, todo = {start}, [start]
    while todo:
        fresh = TASK_EDGES[todo.pop()] - seen
        seen |= fresh
        todo += fresh
    return seen
