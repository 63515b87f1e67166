"""What a lone client is told of the round to come: right if nothing comes in between, and nothing where it can't be."""

from __future__ import annotations

import pytest

from protocol.assignments import Assign
from protocol.recipe import OuterOptimizer
from protocol.tasks import BlobRef, TaskSpec
from tests.coordinator.farm_simulation import Simulation, spec

LARGE = BlobRef(digest="9" * 64, size_bytes=10**9)


def begun(wanted: TaskSpec, *names: str) -> tuple[Simulation, Assign]:
    """Submit a task whose weights don't ride in messages; return what the first client is to do."""
    farm = Simulation()
    for name in names or ("ada",):
        farm.join(name)
    farm.submit(wanted.model_copy(update={"initial_weights": LARGE}))
    return farm, farm.volunteers["ada"].held[0]


def test_a_lone_client_is_told_the_round_to_come() -> None:
    farm, first = begun(spec(shards=(30, 30, 30), rounds=4))
    assert first.upcoming
    assert first.upcoming != first.slices
    farm.deliver(farm.volunteers["ada"])
    (second,) = farm.volunteers["ada"].held
    assert second.slices == first.upcoming
    assert second.samples_before == first.samples_before + first.round_samples
    assert second.epoch == first.epoch


@pytest.mark.parametrize(
    "recipe",
    [
        {"rounds": 1},
        {"outer": OuterOptimizer(options={"lr": 0.7})},
        {"evaluate_every": 1, "holdout": (5,)},
        {"pipeline": True, "max_staleness": 1},
        {"buffer": 1},
        {"quorum_clients": 1},
        {"over_provision": 1.0},
        {"shards": (20,)},
    ],
    ids=lambda recipe: next(iter(recipe)),
)
def test_nothing_is_told_where_something_else_follows(recipe: dict[str, object]) -> None:
    _, first = begun(spec(**{"shards": (30, 30, 30), "rounds": 4, **recipe}))
    assert not first.upcoming


def test_nothing_is_told_where_others_take_part() -> None:
    _, first = begun(spec(shards=(30, 30, 30)), "ada", "bob")
    assert not first.upcoming


def test_weights_that_ride_in_messages_are_waited_for() -> None:
    farm = Simulation()
    farm.join("ada")
    farm.submit(spec(shards=(30, 30, 30)))
    assert not farm.volunteers["ada"].held[0].upcoming


def test_the_guess_costs_the_books_nothing() -> None:
    farm, first = begun(spec(shards=(30, 30, 30), rounds=4))
    farm.join("bob")
    farm.deliver(farm.volunteers["ada"])
    parts = [assign for name in ("ada", "bob") for assign in farm.volunteers[name].held]
    assert sum(assign.samples for assign in parts) == 20
    assert all(assign.slices != first.upcoming for assign in parts), "the round is parted as if nothing had been told"
