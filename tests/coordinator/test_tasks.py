"""What people do with tasks, and what a restart does to them."""

from __future__ import annotations

import pytest

from coordinator.commands import DropRound, ReleaseTask, Save
from coordinator.events import (
    Action,
    AggregationFailed,
    AssignmentFailed,
    ClientReady,
    Restored,
    ServerShort,
    TaskAction,
    TaskPrioritized,
    TaskSubmitted,
)
from coordinator.lifecycle import IllegalTransition, TaskState
from coordinator.queue import queue_order
from coordinator.records import RoundState
from coordinator.settings import CoordinatorSettings
from protocol.assignments import Cancel
from protocol.errors import Conflict, NotFound
from protocol.messages import Pause, Resume, Scope
from protocol.retry import RetryPolicy
from tests.coordinator.farm_simulation import Simulation, spec


@pytest.fixture
def farm() -> Simulation:
    farm = Simulation()
    farm.submit(spec())
    return farm


def act(farm: Simulation, action: Action) -> None:
    farm.handle(TaskAction("t1", action, by="ada"))


def test_pause_frees_the_clients_and_keeps_the_commit(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.deliver(ada)
    act(farm, Action.PAUSE)
    assert farm.task().state is TaskState.PAUSED
    assert farm.task().version == 1
    assert {type(m) for m in ada.messages} >= {Cancel, Pause}
    assert any(isinstance(c, DropRound) for c in farm.log)
    assert not ada.held
    assert "farm resume t1" in farm.view().why
    act(farm, Action.RESUME)
    assert any(isinstance(m, Resume) for m in ada.messages)
    farm.run()
    assert farm.task().samples_done == 80


def test_a_waiting_task_can_be_paused_and_waits_again(farm: Simulation) -> None:
    act(farm, Action.PAUSE)
    act(farm, Action.RESUME)
    assert farm.task().state is TaskState.PENDING


def test_cancel_is_final_and_frees_everything(farm: Simulation) -> None:
    ada = farm.join("ada")
    act(farm, Action.CANCEL)
    assert farm.task().state is TaskState.CANCELLED
    assert not ada.held
    assert any(isinstance(c, ReleaseTask) for c in farm.log)
    with pytest.raises(IllegalTransition, match="cannot become"):
        act(farm, Action.RESUME)


def test_an_illegal_request_changes_nothing(farm: Simulation) -> None:
    before = len(farm.ledger.events)
    with pytest.raises(IllegalTransition):
        act(farm, Action.RETRY)
    assert len(farm.ledger.events) == before
    assert farm.task().state is TaskState.PENDING


def test_unknown_and_repeated_ids(farm: Simulation) -> None:
    with pytest.raises(NotFound, match="no task nope"):
        farm.handle(TaskAction("nope", Action.PAUSE))
    with pytest.raises(Conflict):
        farm.handle(TaskSubmitted("t1", spec()))


def test_a_failed_commit_is_retried_from_the_last_commit_after_a_backoff(farm: Simulation) -> None:
    farm.hold_commits = True
    ada = farm.join("ada")
    farm.deliver(ada)
    commit = farm.pending_commits.pop()
    farm.handle(AggregationFailed("t1", commit.round, commit.attempt, "the disk is full"))
    assert farm.task().state is TaskState.PENDING
    assert farm.task().retries == 1
    assert "the disk is full" in farm.task().reason
    kinds = [e.kind for e in farm.ledger.events if e.kind.startswith("task_")]
    assert kinds[-2:] == ["task_failed", "task_pending"]
    farm.hold_commits = False
    farm.tick(2)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_what_the_server_lacks_costs_a_task_no_retry_however_often(farm: Simulation) -> None:
    ada = farm.join("ada")
    waits = []
    for _ in range(10):
        farm.hold_commits = True
        while not farm.pending_commits:
            farm.tick(1)
            if ada.held:
                farm.deliver(ada)
        commit = farm.pending_commits.pop()
        message = "OSError: [Errno 24] Too many open files"
        farm.handle(AggregationFailed("t1", commit.round, commit.attempt, message, servers_fault=True))
        assert farm.task().state is TaskState.PENDING
        assert farm.task().retries == 0
        assert "Too many open files" in farm.task().reason
        waits.append(farm.task().not_before - farm.now)
    assert waits[0] > 0
    assert max(waits) <= CoordinatorSettings().task_retry.longest_seconds
    farm.hold_commits = False
    farm.tick(CoordinatorSettings().task_retry.longest_seconds)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_a_result_that_the_server_has_no_room_to_check_is_held_against_nobody(farm: Simulation) -> None:
    ada = farm.join("ada")
    for _ in range(10):
        while not ada.held:
            farm.tick(1)
        assign = ada.held.popleft()
        here = ("id-ada", ada.incarnation, assign.assignment_id, assign.fence)
        scope = Scope.ELSEWHERE
        farm.handle(AssignmentFailed(*here, "unavailable", "only 5 bytes are free", scope, servers_fault=True))
        farm.handle(ClientReady("id-ada", ada.incarnation, 1))
        assert not ada.held, "not at once again"
    (view,) = farm.coordinator.client_views(farm.now)
    assert (view.failed, view.breaker) == (0, "closed")
    farm.tick(60)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().retries == 0


def test_why_says_that_a_task_waits_for_the_server(farm: Simulation) -> None:
    farm.hold_commits = True
    farm.deliver(farm.join("ada"))
    assert "waits for the server" not in farm.coordinator.why("t1", farm.now)
    farm.handle(ServerShort("only 5 bytes are free"))
    assert "writing the checkpoint; it waits for the server: only 5 bytes are free" in farm.coordinator.why(
        "t1", farm.now
    )
    farm.handle(ServerShort(None))
    assert "waits for the server" not in farm.coordinator.why("t1", farm.now)


def test_retry_of_a_failed_task_starts_over_from_the_last_commit(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.deliver(ada)
    farm.fail(ada, Scope.NOBODY)
    assert farm.task().state is TaskState.FAILED
    act(farm, Action.RETRY)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().version == 4
    assert farm.task().error is None


def test_a_restart_resumes_from_the_last_commit(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.deliver(ada)
    farm.deliver(bob)
    held = ada.held[0].assignment_id
    farm.restart()
    assert farm.task().state is TaskState.PENDING
    assert farm.task().version == 1
    assert farm.ledger.rounds["t1", 1].state is RoundState.OPEN
    farm.join("ada")
    farm.join("bob")
    assert ada.held[0].assignment_id == held, "it goes on with what it holds"
    farm.run()
    assert farm.ledger.assignments[held].counted
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().samples_done == 80


def test_recovery_is_idempotent(farm: Simulation) -> None:
    farm.join("ada")
    farm.restart()
    saves = [c for c in farm.handle(Restored()) if isinstance(c, Save)]
    assert saves == []


def test_fences_only_grow_across_a_restart(farm: Simulation) -> None:
    ada = farm.join("ada")
    before = ada.held.popleft().fence
    farm.restart()
    farm.now += 1
    farm.join("ada")
    assert ada.held[0].fence > before


def test_an_evaluation_that_the_restart_interrupted_is_done_again() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(rounds=1, holdout=(5,)))
    farm.deliver(ada)
    farm.restart()
    farm.join("ada")
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().metrics == {"loss": 1.0}


def test_an_endless_evaluation_is_given_up_and_the_task_completes() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(rounds=1, holdout=(5,), longest_round_seconds=30))
    farm.deliver(ada)
    farm.accept(ada, ada.held[0])
    farm.tick(31)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().metrics == {}
    assert any(e.kind == "evaluation_given_up" for e in farm.ledger.events)


@pytest.mark.parametrize(("attempt", "longest"), [(1, 1.0), (2, 2.0), (5, 16.0), (100, 60.0)])
def test_backoff_doubles_up_to_its_cap_with_full_jitter(attempt: int, longest: float) -> None:
    policy = RetryPolicy(first_seconds=1.0, longest_seconds=60.0)
    assert policy.bound_seconds(attempt) == longest
    assert policy.delay_seconds(attempt, 0.5) == longest / 2
    assert policy.delay_seconds(attempt, 0.0) == 0.0


def test_a_priority_that_a_person_sets_holds_over_a_restart(farm: Simulation) -> None:
    farm.handle(TaskPrioritized("t1", 9))
    assert farm.view().priority == 9
    farm.restart()
    assert farm.view().priority == 9
    assert queue_order([farm.task()], {}, farm.now, 60.0)[0].priority == 9


def test_a_priority_of_what_is_over_is_refused(farm: Simulation) -> None:
    act(farm, Action.CANCEL)
    with pytest.raises(Conflict, match="waits for nothing"):
        farm.handle(TaskPrioritized("t1", 9))
    with pytest.raises(NotFound):
        farm.handle(TaskPrioritized("nosuch", 9))


def test_a_task_that_was_raised_is_served_first(farm: Simulation) -> None:
    farm.submit(spec(), "t2")
    farm.handle(TaskPrioritized("t2", 9))
    farm.join("ada")
    assert (farm.view("t2").clients, farm.view("t1").clients) == (1, 0)
