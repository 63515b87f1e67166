"""Clients and servers that come back: what was finished counts once, what was begun goes on."""

from __future__ import annotations

import pytest

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import RoundState
from protocol.assignments import Ack, Cancel
from tests.coordinator.farm_simulation import Simulation, spec


@pytest.fixture
def farm() -> Simulation:
    farm = Simulation()
    farm.join("ada")
    farm.join("bob")
    farm.submit(spec(rounds=2))
    return farm


def counts(farm: Simulation) -> set[int]:
    return set(farm.ledger.counted("t1", 0).values())


def test_a_cut_connection_costs_nothing_if_nobody_took_over(farm: Simulation) -> None:
    ada = farm.volunteers["ada"]
    assign = ada.held[0]
    farm.leave(ada, crashed=False)
    farm.join(ada)
    assert list(ada.held) == [assign]
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.assignments[assign.assignment_id].counted


def test_a_client_that_comes_back_while_another_works_on_its_part_is_told_to_stop(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    assign = ada.held[0]
    farm.leave(ada, crashed=False)
    farm.deliver(bob)
    assert bob.held[0].slices == assign.slices
    farm.join(ada)
    assert any(isinstance(m, Cancel) for m in ada.messages)
    farm.run()
    assert counts(farm) == {1}


def test_a_finished_result_counts_although_another_client_took_over(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    assign = ada.held.popleft()
    ada.outbox[assign.assignment_id] = (assign, 1.0, 1.0)  # finished while the connection was down
    farm.leave(ada)
    farm.deliver(bob)
    replacement = bob.held[0]
    farm.join(ada)
    assert farm.ledger.assignments[replacement.assignment_id].state is AssignmentState.EXPIRED
    assert any(isinstance(m, Cancel) and m.assignment_id == replacement.assignment_id for m in bob.messages)
    assert farm.ledger.assignments[assign.assignment_id].counted
    farm.run()
    assert counts(farm) == {1}


def test_the_replacements_result_counts_if_it_is_first(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    assign = ada.held.popleft()
    ada.outbox[assign.assignment_id] = (assign, 1.0, 1.0)
    farm.leave(ada)
    farm.deliver(bob)
    farm.deliver(bob)
    farm.join(ada)
    assert [m.counted for m in ada.messages if isinstance(m, Ack)] == [False]
    assert farm.ledger.assignments[assign.assignment_id].state is AssignmentState.EXPIRED
    farm.run()
    assert counts(farm) == {1}


def test_work_that_was_delivered_outlives_all_clients(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    done = farm.deliver(bob)
    farm.leave(bob)
    farm.leave(ada)
    assert farm.task().state is TaskState.PENDING
    assert "no client is connected" in farm.view().why
    eve = farm.join("eve")
    assert farm.task().state is TaskState.ASSIGNED
    farm.deliver(eve)
    assert farm.task().version == 1
    assert farm.ledger.assignments[done.assignment_id].counted, "nothing finished is done again"


def test_what_was_finished_while_the_server_was_down_counts_once(farm: Simulation) -> None:
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.deliver(bob)  # in the old server's memory only
    assign = ada.held.popleft()
    ada.outbox[assign.assignment_id] = (assign, 1.0, 1.0)
    farm.restart()
    farm.join(ada)
    farm.join(bob)
    assert farm.task().version == 1
    assert counts(farm) == {1}
    assert not ada.outbox
    assert not bob.outbox
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_a_part_is_kept_for_its_client_for_a_while_after_a_restart(farm: Simulation) -> None:
    farm.restart()
    eve = farm.join("eve")
    assert not eve.held
    farm.tick(farm.settings.return_seconds + 1)
    assert eve.held
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert counts(farm) == {1}


def test_a_client_that_comes_back_without_its_work_frees_the_part_at_once(farm: Simulation) -> None:
    farm.restart()
    ada = farm.volunteers["ada"]
    ada.held.clear()
    farm.join(ada)
    assert ada.held


def test_an_open_round_of_another_version_is_not_reopened(farm: Simulation) -> None:
    farm.run()
    done = farm.ledger.rounds["t1", 0]
    farm.ledger.rounds["t1", 0] = done.__class__(
        **{name: getattr(done, name) for name in done.__dataclass_fields__} | {"state": RoundState.OPEN}
    )
    farm.restart()
    assert farm.ledger.rounds["t1", 0].state is RoundState.ABANDONED
