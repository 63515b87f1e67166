"""Asynchronous rounds: who is free begins with the newest version, and a version is of so many results (FedBuff)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.commands import CommitRound, Fold
from coordinator.events import ClientBeat
from coordinator.handing_out import part_of_speed
from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Assign, AssignmentProgress, Kind, Phase
from protocol.digests import digest_bytes
from protocol.messages import Scope
from protocol.recipe import Recipe
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec
from tests.coordinator.test_exactly_once import NAMES, one_fault


def buffered(names: Sequence[str] = ("ada", "bob"), *, buffer: int = 2, **fields: object) -> Simulation:
    farm = Simulation()
    for name in names:
        farm.join(name)
    fields = {"shards": (200,), "rounds": 4, "round_samples": 20, "buffer": buffer, **fields}
    farm.submit(spec(**fields))  # type: ignore[arg-type]
    return farm


def finish(farm: Simulation, volunteer: Volunteer, seconds: float = 1.0) -> Assign:
    """Compute the oldest assignment, be given another, and then deliver the first."""
    done = farm.compute(volunteer, seconds=seconds)
    farm.handle(farm.result(volunteer, done, seconds=seconds))
    return done


def test_a_version_is_of_so_many_results_even_if_one_client_brings_them_all() -> None:
    farm = buffered()
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    slow = bob.held[0]
    assert slow.task.pipeline, "a client is to say that it is free before it delivers"
    assert [finish(farm, ada).round for _ in range(4)] == [0, 0, 0, 1], "free when it has computed, before it delivers"
    assert farm.task().version == 2
    assert bob.held[0] is slow, "nobody stops it"
    assert (ada.held[0].round, slow.round) == (1, 0)


def test_who_comes_later_begins_with_the_newest_version_at_once() -> None:
    farm = buffered(("ada",))
    for _ in range(3):
        finish(farm, farm.volunteers["ada"])
    assert farm.join("eve").held[0].round == farm.task().version == 1


def test_a_stale_update_weighs_less_and_counts_where_it_arrives() -> None:
    farm = buffered()
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    stale = bob.held[0]
    for _ in range(6):
        finish(farm, ada)
    assert farm.task().version == 3
    finish(farm, bob)
    finish(farm, ada)
    assert farm.task().version == 4
    (fold,) = [c for c in farm.log if isinstance(c, Fold) and c.assignment_id == stale.assignment_id]
    assert (fold.round, fold.scale) == (3, 0.5), "(1 + 3) ** -0.5"


def test_what_is_staler_than_allowed_is_given_up_and_done_again() -> None:
    farm = buffered(max_staleness=1, rounds=None, epochs=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    stale = bob.held[0]
    for _ in range(4):
        finish(farm, ada)
    assert farm.ledger.assignments[stale.assignment_id].state is AssignmentState.EXPIRED
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_what_arrives_while_its_last_round_is_being_committed_is_too_stale_for_the_next() -> None:
    farm = buffered(buffer=1, max_staleness=1, rounds=None, epochs=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.deliver(ada)
    farm.hold_commits = True
    farm.deliver(ada)
    stale = farm.deliver(bob)
    assert (farm.task().version, stale.round) == (1, 0)
    farm.hold_commits = False
    farm.finish_commits()
    assert stale.assignment_id not in bob.outbox, "it is told that nobody wants it"
    farm.run()
    assert farm.task().state is TaskState.COMPLETED
    assert not farm.ledger.assignments[stale.assignment_id].counted
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_who_is_late_and_stuck_gets_nothing_more_for_a_while() -> None:
    farm = buffered(buffer=1, shards=(2000,), rounds=100)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    farm.accept(bob, bob.held[0])
    finish(farm, ada)
    assert farm.task().version == 1
    farm.now += farm.settings.stall_seconds + 1
    farm.tick()
    assert not bob.held
    finish(farm, farm.join("eve"))
    assert not bob.held


def test_half_an_epoch_is_half_of_its_samples() -> None:
    farm = buffered(shards=(100,), rounds=None, epochs=0.5)
    farm.run()
    assert (farm.task().state, farm.task().samples_done) == (TaskState.COMPLETED, 50)


def test_a_version_has_no_samples_of_two_epochs() -> None:
    farm = buffered(shards=(40,), rounds=None, epochs=2)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    last = bob.held[0]
    while ada.held:
        finish(farm, ada)
    assert farm.task().epoch == 0
    finish(farm, bob)
    assert farm.task().epoch == 1
    assert last.epoch == 0
    assert {a.epoch for v in (ada, bob) for a in v.held} == {1}


def test_at_the_epochs_end_who_takes_too_long_is_replaced() -> None:
    farm = buffered(shards=(60,), rounds=None, epochs=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    slow = bob.held[0]
    for _ in range(2):
        farm.deliver(ada)
    assert farm.task().version == 1
    while ada.held:
        finish(farm, ada)
    farm.accept(bob, slow)
    for number in range(30):
        done = {"phase": Phase.COMPUTING, "samples_done": min(number // 4, slow.samples)}
        progress = AssignmentProgress(assignment_id=slow.assignment_id, fence=slow.fence, **done)
        farm.handle(ClientBeat("id-bob", bob.incarnation, None, (progress,)))
        farm.tick(10.0)
        while ada.held:
            finish(farm, ada)
    assert farm.task().state is TaskState.COMPLETED
    assert set(farm.ledger.counted("t1", 0).values()) == {1}


def test_a_part_fits_its_clients_speed_so_that_all_take_about_as_long() -> None:
    farm = buffered(shards=(10_000,), round_samples=90, rounds=30)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    for _ in range(5):
        finish(farm, ada, seconds=ada.held[0].samples / 8.0)
        finish(farm, bob, seconds=bob.held[0].samples / 1.0)
    assert (ada.held[0].samples, bob.held[0].samples) == (80, 10)


@given(
    speeds=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9),
    round_samples=st.integers(1, 5000),
    buffer=st.integers(1, 20),
    batch=st.integers(1, 64),
    left=st.integers(1, 10**6),
)
def test_parts_are_whole_batches_no_larger_than_a_round(
    speeds: list[float], round_samples: int, buffer: int, batch: int, left: int
) -> None:
    recipe = Recipe(rounds=1, round_samples=round_samples, batch_samples=batch, buffer=buffer)
    for speed in speeds:
        samples = part_of_speed(recipe, speed / sum(speeds), len(speeds), left)
        assert 1 <= samples <= round_samples
        assert samples % batch == 0 or samples == round_samples


def decoupled(names: Sequence[str] = ("ada", "bob", "eve"), **fields: object) -> Simulation:
    farm = Simulation()
    for name in names:
        farm.join(name)
    fields = {"shards": (6000,), "rounds": 40, "round_samples": 30, "quorum_clients": 2, "grace": 0.5, **fields}
    farm.submit(spec(**fields))  # type: ignore[arg-type]
    return farm


def test_a_version_is_of_a_quorum_of_clients_and_of_who_comes_within_the_grace_window() -> None:
    farm = decoupled()
    ada, bob, eve = farm.volunteers.values()
    for volunteer in farm.volunteers.values():
        farm.accept(volunteer, volunteer.held[0])
    farm.now += 10.0
    finish(farm, ada)
    finish(farm, ada)
    farm.tick(8.0)
    assert farm.task().version == 0, "one client is no quorum, whatever it brings"
    finish(farm, bob)
    assert (farm.task().version, len(farm.ledger.rounds)) == (0, 1)
    farm.tick(4.0)
    assert farm.task().version == 0, "half of the median of 0, 10 and 18 seconds is 5"
    late = eve.held[0]
    farm.tick(2.0)
    assert farm.task().version == 1
    assert eve.held[0] is late, "it merges later"


def test_the_window_ends_when_all_who_work_have_delivered() -> None:
    farm = decoupled(grace=10.0)
    farm.now += 10.0
    for volunteer in farm.volunteers.values():
        assert farm.task().version == 0
        finish(farm, volunteer)
    assert farm.task().version == 1


def test_the_next_quorum_counts_from_its_rounds_own_deliveries() -> None:
    farm = decoupled(("ada", "bob"), grace=0.0)
    ada, bob = farm.volunteers.values()
    farm.now += 10.0
    for version in range(1, 6):
        finish(farm, ada)
        assert farm.task().version == version - 1
        finish(farm, bob)
        assert farm.task().version == version


def test_parts_of_all_clients_together_are_a_round() -> None:
    farm = decoupled(("ada", "bob"), grace=0.0, round_samples=90)
    ada, bob = farm.volunteers.values()
    for _ in range(6):
        finish(farm, ada, seconds=ada.held[0].samples / 8.0)
        finish(farm, bob, seconds=bob.held[0].samples / 1.0)
    assert (ada.held[0].samples, bob.held[0].samples) == (80, 10)


def test_no_more_clients_than_the_recipe_allows() -> None:
    farm = buffered(("ada", "bob", "eve"), max_clients=2, shards=(2000,), rounds=100)
    assert sum(bool(v.held) for v in farm.volunteers.values()) == 2
    for _ in range(8):
        busy = next(v for v in farm.volunteers.values() if v.held)
        finish(farm, busy)
        assert sum(bool(v.held) for v in farm.volunteers.values()) == 2


def test_each_round_opens_with_so_many_clients_at_work_or_free() -> None:
    farm = buffered(("ada",), min_clients=2)
    assert not farm.volunteers["ada"].held
    bob = farm.join("bob")
    assert bob.held
    farm.leave(bob)
    for _ in range(6):
        farm.tick()
        if farm.volunteers["ada"].held:
            finish(farm, farm.volunteers["ada"])
    assert farm.task().version == 1, "one is both free and at work, and no two"


def test_another_task_gets_its_turn() -> None:
    farm = buffered(shards=(100_000,), rounds=1000)
    farm.submit(spec(shards=(10,), rounds=1, min_clients=2, name="other"), "t2")
    for _ in range(50):  # before its age raises the other one's priority
        for volunteer in farm.volunteers.values():
            if volunteer.held and volunteer.held[0].task.task_id == "t1":
                finish(farm, volunteer)
            elif volunteer.held:
                farm.deliver(volunteer)
        farm.tick(1.0)
        if farm.task("t2").state is TaskState.COMPLETED:
            break
    assert farm.task("t2").state is TaskState.COMPLETED
    assert farm.task("t1").version > 1


def test_an_evaluation_has_a_part_for_each_client_although_most_are_at_work() -> None:
    farm = buffered(("ada", "bob", "eve"), holdout=(30,), evaluate_every=1)
    ada, bob = farm.volunteers["ada"], farm.volunteers["bob"]
    finish(farm, ada)
    farm.deliver(ada)
    farm.deliver(ada)
    assert (ada.held[0].kind, ada.held[0].samples) == (Kind.EVALUATE, 10)
    farm.deliver(bob)
    assert (bob.held[0].kind, bob.held[0].samples) == (Kind.EVALUATE, 10)


def test_code_that_fails_everywhere_ends_the_task_although_its_parts_are_late() -> None:
    farm = buffered(("ada", "bob", "eve"), buffer=1)
    first = farm.volunteers["ada"]
    farm.deliver(first)
    assert farm.task().version == 1
    for volunteer in farm.volunteers.values():
        if volunteer.held:
            farm.fail(volunteer, Scope.NOBODY)
    assert farm.task().state is TaskState.FAILED


@pytest.mark.parametrize("seed", range(100))
def test_books_balance_under_faults(seed: int) -> None:
    farm = Simulation(seed)
    rng = farm.rng
    shards = tuple(rng.randint(1, 30) for _ in range(rng.randint(1, 8)))
    epochs = rng.choice((1, 2))
    fields = {"rounds": None, "epochs": epochs, "round_samples": rng.randint(1, 60), "max_retries": 10_000}
    asynchronous = rng.choice(({"buffer": rng.randint(1, 4)}, {"quorum_clients": rng.randint(1, 3), "grace": 0.3}))
    asynchronous |= {"max_staleness": rng.choice((1, 4, 16))}
    farm.submit(spec(shards=shards, holdout=(5,), longest_round_seconds=200.0, **fields, **asynchronous))
    for name in NAMES:
        farm.join(name)
    for _ in range(rng.randint(10, 80)):
        one_fault(farm)
    for _ in range(5_000):
        if farm.task().state is TaskState.COMPLETED:
            break
        for volunteer in farm.volunteers.values():
            if not volunteer.online:
                farm.join(volunteer)
        farm.run()
        farm.tick(5.0)
    assert farm.task().state is TaskState.COMPLETED, farm.view().why
    rows = {(i, row) for i, n in enumerate(shards) for row in range(n)}
    for epoch in range(epochs):
        counted = farm.ledger.counted("t1", epoch)
        assert {key for key in counted if key[0] < len(shards)} == rows
        assert set(counted.values()) == {1}
    assert farm.task().samples_done == epochs * sum(shards)


def update_of(name: str) -> float:
    """The update of an assignment, which both the farm and the reference know: any number."""
    return int(digest_bytes(name.encode())[:8], 16) / 2**31 - 1.0


@given(
    order=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    buffer=st.integers(1, 5),
    max_staleness=st.integers(3, 16),
)
def test_versions_are_those_of_the_papers_algorithm(order: list[int], buffer: int, max_staleness: int) -> None:
    """Nguyen et al., algorithm 1 in float64, told only who was given what and who finished when."""
    names = ("ada", "bob", "eve", "max")
    farm = buffered(names, buffer=buffer, max_staleness=max_staleness, shards=(10**6,), rounds=10**6)
    weights, filled = [0.0], []
    for index in order:
        volunteer = farm.volunteers[names[index]]
        done = finish(farm, volunteer)
        filled.append(done)
        if len(filled) == buffer:
            factors = [a.samples / math.sqrt(1 + len(weights) - 1 - a.round) for a in filled]
            step = sum(f * update_of(a.assignment_id) for f, a in zip(factors, filled, strict=True)) / sum(factors)
            weights.append(weights[-1] - step)
            filled = []
    assert of_the_farm(farm) == pytest.approx(weights, rel=1e-12, abs=1e-12)


def of_the_farm(farm: Simulation) -> list[float]:
    """The versions that the farm's folds and commits make."""
    weights, folds = [0.0], []
    for command in farm.log:
        if isinstance(command, Fold):
            folds.append(command)
        elif isinstance(command, CommitRound):
            factors = [f.samples * f.scale for f in folds]
            step = sum(w * update_of(f.assignment_id) for w, f in zip(factors, folds, strict=True)) / sum(factors)
            weights.append(weights[-1] - step)
            folds = []
    return weights
