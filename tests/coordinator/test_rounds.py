"""Rounds end to end through the coordinator: parted, delivered in any order, committed once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.commands import CommitRound, DropUpdate, Fold, ReleaseTask
from coordinator.events import Action, ResultArrived, TaskAction
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.planning import fixed_sizes
from coordinator.records import RoundState
from protocol.assignments import Ack, Cancel, Kind
from protocol.messages import Pause
from protocol.recipe import Mode, PartSizes, Recipe
from protocol.task_length import smallest_part
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec


@pytest.fixture
def farm() -> Simulation:
    return Simulation()


def test_a_task_goes_from_pending_to_completed(farm: Simulation) -> None:
    farm.submit(spec(rounds=4))
    assert farm.task().state is TaskState.PENDING
    ada = farm.join("ada")
    assert farm.task().state is TaskState.ASSIGNED
    farm.accept(ada, ada.held[0])
    assert farm.task().state is TaskState.RUNNING
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().version == 4
    assert farm.task().samples_done == 80
    assert [r.state for r in farm.ledger.rounds.values()] == [RoundState.COMMITTED] * 4
    assert any(isinstance(c, ReleaseTask) for c in farm.log)
    assert any(isinstance(m, Pause) for m in ada.messages), "the client frees its executor"


def test_a_round_is_parted_evenly_among_equal_clients(farm: Simulation) -> None:
    volunteers = [farm.join(name) for name in ("ada", "bob", "eve")]
    farm.submit(spec(round_samples=30))
    assert [v.held[0].samples for v in volunteers] == [10, 10, 10]


def test_a_faster_client_gets_more(farm: Simulation) -> None:
    fast, slow = farm.join("fast"), farm.join("slow")
    farm.submit(spec(rounds=2, round_samples=20))
    farm.deliver(fast, seconds=1.0)
    farm.deliver(slow, seconds=4.0)
    assert (fast.held[0].samples, slow.held[0].samples) == (16, 4)


def test_a_new_client_is_sized_by_its_benchmark(farm: Simulation) -> None:
    quick = farm.join(Volunteer("quick", gflops=300))
    slow = farm.join(Volunteer("slow", gflops=100))
    farm.submit(spec(round_samples=20))
    assert (quick.held[0].samples, slow.held[0].samples) == (15, 5)


def test_updates_are_folded_in_order_of_place_whatever_the_order_of_arrival(farm: Simulation) -> None:
    volunteers = [farm.join(name) for name in ("ada", "bob", "eve")]
    farm.submit(spec(rounds=1, round_samples=30))
    in_place = [v.held[0].assignment_id for v in volunteers]
    for v in reversed(volunteers):
        farm.deliver(v)
    assert [c.assignment_id for c in farm.log if isinstance(c, Fold)] == in_place


def test_a_result_is_acknowledged_once_a_committed_round_contains_it(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(rounds=1))
    assign = ada.held[0]
    farm.deliver(ada)
    farm.handle(farm.result(ada, assign))  # a repeat before the commit is not answered
    assert not any(isinstance(m, Ack) for m in ada.messages)
    farm.deliver(bob)
    assert [m.counted for m in ada.messages if isinstance(m, Ack)] == [True]
    farm.handle(farm.result(ada, assign))  # one after it is, and does not count
    assert [m.counted for m in ada.messages if isinstance(m, Ack)] == [True, False]
    assert farm.task().samples_done == 20
    assert not ada.outbox


def test_a_stale_fence_counts_for_nothing(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.submit(spec())
    assign = ada.held[0]
    farm.handle(farm.result(ada, assign.model_copy(update={"fence": assign.fence - 1})))
    assert farm.task().version == 0
    assert farm.ledger.assignments[assign.assignment_id].state is AssignmentState.OFFERED


def test_a_result_of_the_wrong_number_of_samples_is_a_failure(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.submit(spec())
    good = farm.result(ada, ada.held[0])
    values = {name: getattr(good, name) for name in ResultArrived.__dataclass_fields__}
    farm.handle(ResultArrived(**{**values, "samples": good.samples - 1}))
    assert farm.ledger.assignments[good.assignment_id].state is AssignmentState.FAILED
    assert any(isinstance(c, DropUpdate) and c.update == good.update for c in farm.log)


def test_a_lost_clients_part_goes_to_somebody_else_in_the_same_round(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(rounds=1))
    lost = ada.held[0]
    farm.leave(ada)
    farm.deliver(bob)
    assert bob.held[0].slices == lost.slices
    farm.deliver(bob)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.ledger.assignments[lost.assignment_id].state is AssignmentState.EXPIRED


def test_a_client_that_joins_during_a_round_works_from_the_next(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.submit(spec(rounds=2))
    bob = farm.join("bob")
    assert not bob.held
    farm.deliver(ada)
    assert bob.held
    assert ada.held


def test_when_all_clients_are_gone_the_task_waits_and_resumes_from_its_commit(farm: Simulation) -> None:
    ada = farm.join("ada")
    farm.submit(spec(rounds=3))
    farm.deliver(ada)
    farm.leave(ada)
    assert farm.task().state is TaskState.PENDING
    assert "no client is connected" in farm.view().why
    farm.join("ada")
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().samples_done == 60


def test_an_aggregate_of_an_abandoned_round_is_ignored(farm: Simulation) -> None:
    farm.hold_commits = True
    ada = farm.join("ada")
    farm.submit(spec(rounds=2))
    farm.deliver(ada)
    farm.handle(TaskAction("t1", Action.PAUSE))
    farm.finish_commits()
    assert farm.task().version == 0
    farm.handle(TaskAction("t1", Action.RESUME))
    farm.hold_commits = False
    farm.run()
    assert farm.task().version == 2


def test_min_and_init_min_clients(farm: Simulation) -> None:
    farm.submit(spec(rounds=3, init_min_clients=2, min_clients=1))
    ada = farm.join("ada")
    assert not ada.held
    assert "waits for 2 free clients" in farm.view().why
    bob = farm.join("bob")
    assert ada.held
    assert bob.held
    farm.leave(bob)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED


def test_max_clients_takes_the_best_scored(farm: Simulation) -> None:
    slow = farm.join(Volunteer("slow", gflops=10))
    fast = farm.join(Volunteer("fast", gflops=100))
    farm.submit(spec(max_clients=1))
    assert fast.held
    assert not slow.held


def test_evaluation_runs_on_held_out_shards_and_its_means_are_kept(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(holdout=(6, 2), rounds=1))
    farm.deliver(ada)
    farm.deliver(bob)
    parts = ada.held[0], bob.held[0]
    assert {a.kind for a in parts} == {Kind.EVALUATE}
    assert sum(a.samples for a in parts) == 8
    farm.deliver(ada, loss=1.0)
    farm.deliver(bob, loss=3.0)
    assert farm.task().state is TaskState.COMPLETED
    assert farm.task().metrics == {"loss": 2.0}
    assert farm.ledger.checkpoints["t1", 1].metrics == {"loss": 2.0}


def test_evaluate_every_second_round_and_after_the_last(farm: Simulation) -> None:
    farm.join("ada")
    farm.submit(spec(holdout=(5,), rounds=3, evaluate_every=2))
    farm.run()
    evaluated = sorted(a.round for a in farm.ledger.assignments.values() if a.kind is Kind.EVALUATE)
    assert evaluated == [2, 3]


def test_a_quorum_commits_at_the_deadline_and_owes_the_rest_to_the_next_round(farm: Simulation) -> None:
    ada, bob = farm.join("ada"), farm.join("bob")
    farm.submit(spec(shards=(20,), epochs=1, rounds=None, quorum=0.5, longest_round_seconds=10.0))
    missing = bob.held[0]
    farm.deliver(ada)
    farm.tick(11)
    assert farm.task().version == 1
    assert any(isinstance(m, Cancel) for m in bob.messages)
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    counted = farm.ledger.counted("t1", 0)
    assert len(counted) == 20
    assert set(counted.values()) == {1}
    assert farm.ledger.assignments[missing.assignment_id].state is AssignmentState.EXPIRED


def test_gradients_mode_needs_all_of_a_global_batch() -> None:
    with pytest.raises(ValueError, match="quorum"):
        spec(mode=Mode.GRADIENTS, quorum=0.9)


def test_a_commit_waits_for_durability_before_the_next_round_is_offered(farm: Simulation) -> None:
    farm.hold_commits = True
    ada = farm.join("ada")
    farm.submit(spec(rounds=2))
    farm.deliver(ada)
    assert not ada.held
    assert isinstance(farm.pending_commits[0], CommitRound)
    farm.finish_commits()
    assert ada.held[0].round == 1


def fixed_parts_of(names: tuple[str, ...], seconds: float, **recipe: object) -> set[tuple[object, ...]]:
    """Train with these clients, each of another speed, and return the round, place and samples of each part."""
    farm = Simulation()
    volunteers = [farm.join(name) for name in names]
    farm.submit(spec(shards=(37, 20), rounds=None, epochs=2, round_samples=20, parts=PartSizes.FIXED, **recipe))
    while farm.task().state is not TaskState.COMPLETED:
        busy = [v for v in volunteers if v.held]
        farm.deliver(busy[-1], seconds=seconds * (1 + volunteers.index(busy[-1])))
    counted = [a for a in farm.ledger.assignments.values() if a.counted]
    assert set(farm.ledger.counted("t1", 0).values()) == {1}
    return {(a.round, a.position, a.samples, a.ranges) for a in counted}


@pytest.mark.parametrize("recipe", [{"part_samples": 6}, {"min_clients": 1}, {"part_samples": 7, "batch_samples": 2}])
def test_fixed_parts_are_the_same_whoever_comes_and_however_fast(recipe: dict[str, object]) -> None:
    alone = fixed_parts_of(("ada",), 1.0, **recipe)
    assert fixed_parts_of(("ada", "bob"), 3.0, **recipe) == alone
    assert fixed_parts_of(("ada", "bob", "eve", "max"), 0.2, **recipe) == alone


def test_as_many_fixed_parts_as_clients_that_a_round_needs(farm: Simulation) -> None:
    volunteers = [farm.join(name) for name in ("ada", "bob", "eve")]
    farm.submit(spec(round_samples=20, min_clients=2, batch_samples=4, parts=PartSizes.FIXED))
    assert sorted(v.held[0].samples for v in volunteers if v.held) == [8, 12]


@given(st.integers(1, 500), st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.sampled_from(Mode))
def test_fixed_sizes_leave_no_part_too_small(samples: int, size: int, batch: int, clients: int, mode: Mode) -> None:
    for part_samples in (size, None):
        recipe = Recipe(
            rounds=1,
            round_samples=samples,
            batch_samples=batch,
            min_clients=clients,
            mode=mode,
            parts=PartSizes.FIXED,
            part_samples=part_samples,
        )
        sizes = fixed_sizes(samples, recipe)
        assert sum(sizes) == samples
        assert min(sizes) >= min(smallest_part(recipe), part_samples or samples)
        assert len(sizes) <= clients or part_samples


def test_each_fold_says_whose_the_update_is(farm: Simulation) -> None:
    volunteers = [farm.join(name) for name in ("ada", "bob")]
    farm.submit(spec(min_clients=2))
    parts = {farm.deliver(volunteer).assignment_id: f"id-{volunteer.name}" for volunteer in volunteers}
    folds = [command for command in farm.log if isinstance(command, Fold)]
    assert {fold.assignment_id: fold.client_id for fold in folds} == parts
