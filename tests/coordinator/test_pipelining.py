"""Pipelining: clients that are done with their part of a round begin the next one with the weights that they have."""

from __future__ import annotations

import pytest

from coordinator.commands import Fold, OpenRound, Send
from coordinator.events import Action, ClientReady, TaskAction
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Ack, Cancel, Prefetch
from protocol.limits import INLINE_BYTES
from protocol.messages import Scope
from tests.coordinator.farm_simulation import Simulation, blob, spec

PIPELINE = {"pipeline": True, "max_staleness": 1}


def pipelined(rounds: int | None = 4, **recipe: object) -> Simulation:
    farm = Simulation()
    for name in ("ada", "bob"):
        farm.join(name)
    farm.submit(spec(shards=(60, 60), rounds=rounds, round_samples=20, **PIPELINE, **recipe))
    return farm


def folds(farm: Simulation, round_number: int) -> list[Fold]:
    return [c for c in farm.log if isinstance(c, Fold) and c.round == round_number]


def test_a_client_that_has_computed_gets_a_part_of_the_next_round_with_the_weights_it_has() -> None:
    farm = pipelined()
    ada = farm.volunteers["ada"]
    first = farm.compute(ada)
    (ahead,) = ada.held
    assert (ahead.round, ahead.weights, ahead.samples) == (first.round, first.weights, first.samples)
    assert not set(farm.ledger.assignments[ahead.assignment_id].ranges) & {
        r for a in farm.ledger.assignments.values() if a.assignment_id != ahead.assignment_id for r in a.ranges
    }


def test_an_assignment_says_where_the_task_is_for_its_schedules() -> None:
    farm = pipelined()
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    first = farm.compute(ada)
    (ahead,) = ada.held
    assert (first.samples_before, first.round_samples, first.samples) == (0, 20, 10)
    assert (ahead.samples_before, ahead.round_samples) == (20, 20), "the open round comes first"
    farm.upload(ada, first)
    farm.deliver(bob)
    assert farm.task().version == 1
    assert [(assign.samples_before, assign.round_samples) for assign in bob.held] == [(20, 20)]


def test_when_its_round_opens_it_is_one_of_its_parts_and_weighs_less() -> None:
    farm = pipelined()
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    first = farm.compute(ada)
    ahead = ada.held[0]
    farm.upload(ada, first)
    farm.deliver(bob)
    assert farm.task().version == 1
    done = farm.compute(ada)
    assert done.assignment_id == ahead.assignment_id
    farm.upload(ada, done)
    farm.deliver(bob)
    assert farm.task().version == 2
    scales = {fold.assignment_id: fold.scale for fold in folds(farm, 1)}
    assert scales[ahead.assignment_id] == pytest.approx(2**-0.5)
    assert sorted(scales.values()) == pytest.approx([2**-0.5, 1.0])
    assert sum(fold.samples for fold in folds(farm, 1)) == 20


def test_a_part_that_arrives_before_its_round_opens_waits_for_it() -> None:
    farm = pipelined()
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.upload(ada, farm.compute(ada))
    early = farm.compute(ada)
    farm.upload(ada, early)
    assert not ada.held, "one round ahead, and no further"
    assert early.assignment_id in ada.outbox, "it is settled when a committed round contains it"
    farm.deliver(bob)
    assert early.assignment_id in ada.outbox
    farm.run()
    assert early.assignment_id not in ada.outbox
    assert farm.counted_in[early.assignment_id] == 1


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_sample_counts_once_however_clients_overtake_each_other(epochs: int) -> None:
    farm = pipelined(rounds=None, epochs=epochs)
    on_their_way = []
    for step in range(400):
        busy = [v for v in farm.volunteers.values() if v.held]
        if busy and (step % 3 or not on_their_way):
            volunteer = farm.rng.choice(busy)
            on_their_way.append((volunteer, farm.compute(volunteer)))
        elif on_their_way:
            farm.upload(*on_their_way.pop(farm.rng.randrange(len(on_their_way))))
    assert farm.task().state is TaskState.COMPLETED
    for epoch in range(epochs):
        assert len(farm.ledger.counted("t1", epoch)) == 120
        assert set(farm.ledger.counted("t1", epoch).values()) == {1}
    assert farm.task().samples_done == 120 * epochs


def test_the_last_round_has_none_ahead_of_it() -> None:
    farm = pipelined(rounds=1)
    ada = farm.volunteers["ada"]
    farm.compute(ada)
    assert not ada.held


def test_a_task_that_waits_for_clients_is_served_before_a_round_to_come() -> None:
    farm = pipelined()
    farm.submit(spec(name="other"), "t2")
    ada = farm.volunteers["ada"]
    farm.compute(ada)
    assert [a.task.task_id for a in ada.held] == ["t2"]


def test_a_newcomer_waits_for_a_fresh_part() -> None:
    farm = pipelined()
    eve = farm.join("eve")
    assert not eve.held
    for name in ("ada", "bob"):
        farm.deliver(farm.volunteers[name])
    assert [a.round for a in eve.held] == [1]


def test_what_a_client_did_ahead_and_lost_is_done_by_somebody_else() -> None:
    farm = pipelined(rounds=None, epochs=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.upload(ada, farm.compute(ada))
    lost = ada.held[0]
    farm.leave(ada)
    assert farm.ledger.assignments[lost.assignment_id].state is AssignmentState.EXPIRED
    farm.deliver(bob)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_a_failure_ahead_is_the_clients_and_keeps_it_off_for_a_while() -> None:
    farm = pipelined()
    ada = farm.volunteers["ada"]
    farm.compute(ada)
    farm.fail(ada, Scope.ELSEWHERE)
    assert not ada.held
    assert farm.ledger.clients["id-ada"].failed == 1


def test_a_pause_stops_what_is_done_ahead() -> None:
    farm = pipelined()
    ada = farm.volunteers["ada"]
    farm.compute(ada)
    ahead = ada.held[0]
    farm.handle(TaskAction("t1", Action.PAUSE))
    assert any(isinstance(m, Cancel) and m.assignment_id == ahead.assignment_id for m in ada.messages)
    farm.handle(TaskAction("t1", Action.RESUME))
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_a_cancel_settles_results_that_waited_for_their_round() -> None:
    farm = pipelined()
    ada = farm.volunteers["ada"]
    farm.upload(ada, farm.compute(ada))
    early = farm.compute(ada)
    farm.upload(ada, early)
    farm.handle(TaskAction("t1", Action.CANCEL))
    answers = [m for m in ada.messages if isinstance(m, Ack) and m.assignment_id == early.assignment_id]
    assert [m.counted for m in answers] == [False]


def test_a_restarted_server_waits_for_parts_that_were_begun_ahead() -> None:
    farm = pipelined(rounds=None, epochs=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.upload(ada, farm.compute(ada))
    ahead = ada.held[0]
    farm.deliver(bob)
    assert farm.task().version == 1
    farm.restart()
    for volunteer in (ada, bob):
        farm.join(volunteer)
    assert not any(isinstance(m, Cancel) and m.assignment_id == ahead.assignment_id for m in ada.messages)
    farm.run()
    assert farm.ledger.assignments[ahead.assignment_id].counted
    assert [f.scale for f in folds(farm, 1) if f.assignment_id == ahead.assignment_id][-1] == pytest.approx(2**-0.5)
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_a_round_that_is_all_ahead_commits_as_soon_as_it_opens() -> None:
    farm = Simulation()
    ada = farm.join("ada")
    farm.submit(spec(shards=(60,), rounds=3, round_samples=20, **PIPELINE))
    first = farm.compute(ada)
    farm.upload(ada, farm.compute(ada))
    opened = len([c for c in farm.log if isinstance(c, OpenRound)])
    farm.upload(ada, first)
    assert farm.task().version == 2
    assert len([c for c in farm.log if isinstance(c, OpenRound)]) == opened + 2


def test_a_delivery_does_not_free_a_slot_that_was_free_before() -> None:
    farm = pipelined()
    ada = farm.volunteers["ada"]
    first = farm.compute(ada)
    assert len(ada.held) == 1
    farm.upload(ada, first)
    views = {c.name: c for c in farm.coordinator.client_views(farm.now)}
    assert views["ada"].slots == 0
    farm.handle(ClientReady("id-ada", ada.incarnation, 0))
    assert len(ada.held) == 1


def announced(farm: Simulation) -> list[tuple[str, tuple[str, ...]]]:
    sent = (c for c in farm.log if isinstance(c, Send) and isinstance(c.message, Prefetch))
    return [(c.client_id, tuple(blob.digest for blob in c.message.blobs)) for c in sent]  # type: ignore[union-attr]


@pytest.mark.parametrize("size_bytes", [INLINE_BYTES, INLINE_BYTES + 1])
def test_who_computes_ahead_is_told_what_leads_to_the_new_version(size_bytes: int) -> None:
    """Unless that is so small that the next assignment brings it."""
    farm = pipelined()
    farm.weights_size = {"size_bytes": size_bytes}
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.upload(ada, farm.compute(ada))
    farm.deliver(bob)
    assert farm.task().version == 1
    newest = blob("t1/1").digest
    assert announced(farm) == ([("id-ada", (newest,))] if size_bytes > INLINE_BYTES else [])
