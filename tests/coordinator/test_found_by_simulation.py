"""Defects that ``tests.simulation`` found, each told by hand."""

from __future__ import annotations

import pytest

from coordinator.events import Action, AggregationFailed, AssignmentFailed, ClientReady, TaskAction
from coordinator.lifecycle import AssignmentState, IllegalTransition, TaskState
from protocol.assignments import Ack, Kind
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


@pytest.fixture
def farm() -> Simulation:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(rounds=1))
    return farm


def test_a_result_that_the_server_refuses_is_settled_so_that_its_client_forgets_it(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    assign = ada.held.popleft()
    ada.outbox[assign.assignment_id] = (assign, 1.0, 1.0)
    here = ("id-ada", ada.incarnation, assign.assignment_id, assign.fence)
    farm.handle(AssignmentFailed(*here, code="bad_update", message="another layout", scope=Scope.ELSEWHERE))
    assert not ada.outbox
    assert not next(m for m in ada.messages if isinstance(m, Ack)).counted


def test_a_finished_result_that_comes_with_a_new_connection_frees_no_slot() -> None:
    farm = Simulation()
    ada = farm.join(Volunteer("ada"))
    farm.submit(spec(rounds=None, epochs=1, round_samples=40), "t1")
    assign = ada.held.popleft()
    farm.leave(ada, crashed=False)
    farm.join(ada)
    farm.submit(spec(), "t2")
    farm.handle(farm.result(ada, assign))
    farm.submit(spec(), "t3")
    assert len(ada.held) == 1


def test_a_round_may_fail_while_its_task_waits_for_clients_to_come_back(farm: Simulation) -> None:
    farm.leave(farm.volunteers["ada"], crashed=False)
    farm.tick()
    assert farm.task().state is TaskState.PENDING
    farm.handle(AggregationFailed("t1", 0, 1, "the disk is full"))
    assert (farm.task().state, farm.task().retries) == (TaskState.PENDING, 1)
    assert "the disk is full" in farm.task().reason


def test_a_last_round_is_committed_after_all_clients_have_gone(farm: Simulation) -> None:
    farm.hold_commits = True
    farm.run()
    farm.leave(farm.volunteers["ada"])
    farm.tick()
    assert farm.task().state is TaskState.RUNNING
    farm.finish_commits()
    assert farm.task().state is TaskState.COMPLETED


@pytest.mark.parametrize("action", [Action.RETRY, Action.RESUME])
def test_only_a_failed_task_is_retried_and_only_a_paused_one_resumed(farm: Simulation, action: Action) -> None:
    with pytest.raises(IllegalTransition, match=r"is assigned and .* only a (failed|paused) task re"):
        farm.handle(TaskAction("t1", action))
    assert farm.task().state is TaskState.ASSIGNED


def test_what_was_delivered_to_an_evaluation_that_is_given_up_is_settled_in_the_ledger() -> None:
    farm = Simulation()
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(holdout=(10,), rounds=1))
    farm.deliver(ada)
    farm.deliver(bob)
    assert ada.held[0].kind is Kind.EVALUATE
    done = farm.deliver(ada)
    farm.handle(TaskAction("t1", Action.PAUSE))
    assert farm.ledger.assignments[done.assignment_id].state is AssignmentState.DELIVERED


def test_fences_grow_across_a_restart_with_a_clock_that_was_set_back(farm: Simulation) -> None:
    before = farm.fail(farm.volunteers["ada"]).fence
    farm.now -= 3600
    farm.restart()
    ada = farm.join("ada")
    assert ada.held[0].fence > before


def test_a_repeated_evaluation_is_settled_although_others_still_evaluate() -> None:
    farm = Simulation()
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(holdout=(10,), rounds=1))
    farm.deliver(ada)
    farm.deliver(bob)
    done = farm.deliver(ada)
    ada.messages.clear()
    farm.handle(farm.result(ada, done))  # the first acknowledgement was lost with its connection
    assert [m.assignment_id for m in ada.messages if isinstance(m, Ack)] == [done.assignment_id]


def test_a_late_offer_that_was_not_seen_yet_takes_its_slot_too() -> None:
    farm = Simulation()
    ada, bob = farm.join(Volunteer("ada")), farm.join(Volunteer("bob"))
    farm.submit(spec(shards=(100,), over_provision=1.0, max_staleness=2, submitter="ada"), "t1")
    unseen = ada.held[0]
    farm.deliver(bob)
    assert farm.task().version == 1
    farm.submit(spec(submitter="bob"), "t2")
    farm.handle(ClientReady("id-ada", ada.incarnation, 1))  # it crossed the offer, whose round is over, on the wire
    assert list(ada.held) == [unseen]


def test_a_backoff_does_not_outlast_a_clock_that_was_set_back(farm: Simulation) -> None:
    number, attempt = farm.open["t1"]
    farm.handle(AggregationFailed("t1", number, attempt, "the disk is full"))
    farm.now -= 3600.0
    farm.restart()
    assert farm.task().not_before <= farm.now + farm.settings.task_retry.longest_seconds
