"""Rounds of a split: each takes of all parts by their sizes, and an epoch has each sample once."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from coordinator.data_parts import apportioned, sizes_of_parts, take_of_parts
from coordinator.epoch import epoch_order
from protocol.assignments import Kind
from protocol.data_split import DataPart
from protocol.recipe import Recipe
from protocol.tasks import BlobRef, Dataset, Shard, Split, TaskSpec

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(SIZES)
def test_samples_are_read_by_their_places_in_their_parts(sizes):
    places = sorted((Fraction(2 * k + 1, 2 * n), part) for part, n in enumerate(sizes) for k in range(n))
    expected = [0] * len(sizes)
    assert apportioned(sizes, 0) == expected
    for count, (_, part) in enumerate(places, start=1):
        expected[part] += 1
        assert apportioned(sizes, count) == expected


@given(SIZES, st.integers(0, 400))
def test_each_part_is_near_its_share(sizes, count):
    count = min(count, sum(sizes))
    for taken, size in zip(apportioned(sizes, count), sizes, strict=True):
        assert abs(taken - count * size / sum(sizes)) <= len(sizes) / 2 + 1


def spec_of(parts: list[list[int]], round_samples: int = 8) -> TaskSpec:
    """Return a task whose parts have shards of these sizes, and one shard that is held out."""
    sizes = [n for part in parts for n in part]
    shards = [Shard(index=index, samples=n) for index, n in enumerate(sizes)]
    dataset = Dataset(
        kind="code",
        shards=(*shards, Shard(index=len(shards), split=Split.HOLDOUT, samples=3)),
        parts=tuple(DataPart(shards=len(part), samples=sum(part)) for part in parts),
    )
    recipe = Recipe(rounds=1, split="iid", split_parts=len(parts), round_samples=round_samples)
    blob = BlobRef(digest="0" * 64, size_bytes=1)
    return TaskSpec(name="t", code=blob, entry="train.py", dataset=dataset, initial_weights=blob, recipe=recipe)


PARTS = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=6)


@given(PARTS, st.integers(1, 30), st.integers(0, 5), st.integers(1, 4))
def test_an_epochs_rounds_have_each_sample_once_in_one_run_for_each_part(parts, round_samples, seed, stripe):
    spec = spec_of(parts, round_samples)
    dataset, total = spec.dataset, spec.dataset.samples(Split.TRAIN)
    order = epoch_order(dataset.of(Split.TRAIN), seed, 0)
    seen = []
    for start, stop in pairwise([*range(0, total, round_samples), total]):
        ranges = take_of_parts(dataset, order, start, round_samples, stripe)
        sizes = sizes_of_parts(ranges, spec, Kind.TRAIN)
        of_parts = [dataset.part_of_shard[one.shard] for one in ranges]
        assert of_parts == sorted(of_parts)
        assert len(sizes) == len(set(of_parts))
        assert sum(sizes) == stop - start
        seen += [(one.shard, row) for one in ranges for row in range(one.start, one.stop)]
    assert sorted(seen) == [(shard.index, row) for shard in dataset.of(Split.TRAIN) for row in range(shard.samples)]


def test_a_round_of_the_whole_epoch_has_each_part_whole():
    spec = spec_of([[5, 5], [2], [9, 1]])
    ranges = take_of_parts(spec.dataset, spec.dataset.of(Split.TRAIN), 0, 22, 4)
    assert sizes_of_parts(ranges, spec, Kind.TRAIN) == [10, 2, 10]


def test_evaluations_are_parted_as_everywhere():
    spec = spec_of([[5], [5]])
    ranges = take_of_parts(spec.dataset, spec.dataset.of(Split.TRAIN), 0, 10, 4)
    assert sizes_of_parts(ranges, spec, Kind.EVALUATE) == [10]  # of min_clients 1
