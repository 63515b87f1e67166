"""Rows in order: one part of a round for each stretch, which goes on where the round before left it, whatever fails."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.epoch import in_stretches, take
from coordinator.lifecycle import TaskState
from coordinator.planning import fixed_parts
from coordinator.records import AssignmentRecord, SampleRange
from protocol.assignments import Kind
from protocol.recipe import PartSizes, Recipe
from protocol.tasks import Shard
from protocol.versions import SEQUENTIAL_ORDER
from tests.coordinator.farm_simulation import Simulation, Volunteer, spec
from tests.coordinator.test_exactly_once import NAMES, one_fault

ORDERED = {"order": "sequential", "holdout": (4,)}


def reader(name: str) -> Volunteer:
    return Volunteer(name, features=(SEQUENTIAL_ORDER,))


def shards_of(parts: list[int], streams: int, stretches: int) -> list[Shard]:
    """So many batches in each part, for all stretches."""
    sizes = [streams * batches for batches in parts for _ in range(stretches)]
    return [Shard(index=index, samples=samples) for index, samples in enumerate(sizes)]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_rounds_take_whole_batches_of_each_stretch_in_order(
    parts: list[int], streams: int, stretches: int, batches: int
) -> None:
    shards = shards_of(parts, streams, stretches)
    recipe = Recipe(rounds=1, order="sequential", batch_samples=streams, min_clients=stretches)
    place = [(0, 0)] * stretches
    count = batches * streams * stretches
    for cursor in range(0, sum(shard.samples for shard in shards), count):
        ranges = take(shards, cursor, count, stretches)
        of_stretch = in_stretches(ranges, stretches)
        assert len(of_stretch) == stretches
        assert fixed_parts(ranges, recipe, Kind.TRAIN) == [sum(r.samples for r in one) for one in of_stretch]
        for number, mine in enumerate(of_stretch):
            assert sum(r.samples for r in mine) % streams == 0
            for one in mine:
                assert (one.shard // stretches, one.start) == place[number]
                is_over = one.stop == shards[one.shard].samples
                place[number] = (one.shard // stretches + 1, 0) if is_over else (one.shard // stretches, one.stop)
    assert place == [(len(parts), 0)] * stretches


def counted_parts(farm: Simulation) -> dict[tuple[int, int], list[AssignmentRecord]]:
    """The counted assignments of each epoch's stretches, in the order of their rounds."""
    found = defaultdict(list)
    for record in farm.ledger.assignments.values():
        if record.counted and record.kind is Kind.TRAIN:
            (stretch,) = {one.shard % 2 for one in record.ranges}
            found[record.epoch, stretch].append(record)
    return {key: sorted(records, key=lambda r: r.round) for key, records in found.items()}


@pytest.mark.parametrize("seed", range(30))
def test_each_part_goes_on_where_its_stretch_was_left_under_faults(seed: int) -> None:
    farm = Simulation(seed)
    streams, epochs = farm.rng.randint(1, 3), 2
    shards = tuple(n.samples for n in shards_of([farm.rng.randint(1, 5) for _ in range(3)], streams, 2))
    farm.submit(
        spec(
            shards=shards,
            rounds=None,
            epochs=epochs,
            batch_samples=streams,
            min_clients=2,
            round_samples=2 * streams * farm.rng.randint(1, 4),
            longest_round_seconds=200.0,
            max_retries=10_000,
            **ORDERED,
        )
    )
    for name in NAMES:
        farm.join(reader(name))
    for _ in range(farm.rng.randint(5, 60)):
        one_fault(farm)
    for _ in range(5_000):  # the faults end: the farm finishes by itself
        if farm.task().state is TaskState.COMPLETED:
            break
        for volunteer in farm.volunteers.values():
            if not volunteer.online:
                farm.join(volunteer)
        farm.run()
        farm.tick(5.0)
    assert farm.task().state is TaskState.COMPLETED, farm.view().why
    counted = counted_parts(farm)
    assert sorted(counted) == [(epoch, stretch) for epoch in range(epochs) for stretch in range(2)]
    for (epoch, stretch), records in counted.items():
        rows = [(one.shard, row) for r in records for one in r.ranges for row in range(one.start, one.stop)]
        assert rows == [(i, row) for i in range(stretch, len(shards), 2) for row in range(shards[i])]
        rounds = [r.round for r in records]
        assert rounds == list(range(rounds[0], rounds[0] + len(rounds))), "one part of each stretch a round"
        assert set(farm.ledger.counted("t1", epoch).values()) == {1}


def held_by(volunteers: list[Volunteer]) -> list[list[tuple[int, int, int]]]:
    return sorted(
        [(part.shard.index, part.start, part.stop) for part in v.held[0].slices] for v in volunteers if v.held
    )


@pytest.mark.parametrize(
    "recipe",
    [{"order": "sequential"}, {"parts": PartSizes.FIXED}, {"split": "iid", "split_parts": 4}],
    ids=["in order", "fixed", "split"],
)
def test_fixed_parts_stay_apart_when_the_server_comes_back(recipe: dict[str, object]) -> None:
    """One client held on to its part; those of the others are free, and are still three."""
    farm = Simulation()
    volunteers = [farm.join(reader(name)) for name in NAMES]
    farm.submit(spec(shards=(10, 10, 10, 10), round_samples=20, min_clients=4, **recipe))
    before = held_by(volunteers)
    assert len(before) == 4
    for volunteer in volunteers[1:]:
        farm.fail(volunteer)
        farm.leave(volunteer)
    farm.restart()
    farm.join(volunteers[0])
    for volunteer in volunteers[1:]:
        farm.join(volunteer)
    farm.tick(5.0)
    assert held_by(volunteers) == before


def test_evaluation_is_not_parted_by_stretches() -> None:
    recipe = Recipe(rounds=1, order="sequential", batch_samples=2, min_clients=2, round_samples=8)
    ranges = (SampleRange(2, 0, 2), SampleRange(3, 0, 2), SampleRange(4, 0, 2))
    assert fixed_parts(ranges, recipe, Kind.EVALUATE) == [4, 2]
    assert fixed_parts(ranges, recipe, Kind.TRAIN) == [4, 2]
    assert fixed_parts(ranges[:2], recipe, Kind.EVALUATE) == [4]


def test_a_client_that_reads_rows_in_its_own_order_gets_no_part() -> None:
    farm = Simulation()
    old = farm.join(Volunteer("old", features=()))
    farm.submit(spec(round_samples=20, min_clients=1, **ORDERED))
    assert not old.held
    assert "cannot read rows in order: it needs a newer aifarm" in farm.view().why
    farm.submit(spec(), "t2")
    assert [assign.task.task_id for assign in old.held] == ["t2"]
    new = farm.join(reader("new"))
    assert [assign.task.task_id for assign in new.held] == ["t1"]
