"""Rounds of a task whose rows are split among virtual clients: each takes of all of them, by their sizes.

A split changes which rows train together, and nothing of the books: an epoch has each row of each part exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from coordinator.epoch import take
from coordinator.planning import count_samples, fixed_parts
from coordinator.records import SampleRange
from protocol.assignments import Kind
from protocol.tasks import Dataset, Shard, TaskSpec


def apportioned(sizes: Sequence[int], count: int) -> list[int]:
    """Count how many of the first ``count`` samples of an epoch come from each part.

    ``sizes`` are the parts' samples, each over 0; ``0 <= count <= sum(sizes)``. Sample k of a part of n has its place
    at (k + 1/2) / n of the epoch, and parts are read by these places, of equal ones the first part first: the divisor
    method of Webster and Sainte-Lague. So each entry never shrinks as ``count`` grows, and stays near its share.
    """
    largest = max(sizes)
    cells = 4 * largest * largest  # two places that differ are further apart than one cell
    low, high = 0, cells
    while low < high:  # the last cell up to which there are no more than ``count``
        middle = (low + high + 1) // 2
        if sum(_before(n, middle, cells) for n in sizes) <= count:
            low = middle
        else:
            high = middle - 1
    taken = [_before(n, low, cells) for n in sizes]
    rest = count - sum(taken)
    for i, n in enumerate(sizes):  # what is left lies in one cell, at one place
        if rest and _before(n, low + 1, cells) > taken[i]:
            taken[i] += 1
            rest -= 1
    return taken


def _before(samples: int, cell: int, cells: int) -> int:
    """Count a part's places (k + 1/2) / samples that are at most cell / cells."""
    return (2 * cell * samples + cells) // (2 * cells)


def take_of_parts(
    dataset: Dataset, order: Sequence[Shard], cursor: int, count: int, stripe_shards: int
) -> tuple[SampleRange, ...]:
    """Return samples ``cursor`` to ``cursor + count`` of an epoch (fewer at its end), part by part.

    ``order`` is that in which the epoch visits the training shards; within a part it is kept.
    """
    sizes = [part.samples for part in dataset.parts]
    first, last = (apportioned(sizes, min(place, sum(sizes))) for place in (cursor, cursor + count))
    of_parts: list[list[Shard]] = [[] for _ in sizes]
    for shard in order:
        of_parts[dataset.part_of_shard[shard.index]].append(shard)
    return tuple(
        one
        for shards, start, stop in zip(of_parts, first, last, strict=True)
        for one in take(shards, start, stop - start, stripe_shards)
    )


def sizes_of_parts(ranges: Sequence[SampleRange], spec: TaskSpec, kind: Kind) -> list[int]:
    """Return the sizes of a step's fixed parts: of a split there is one for each virtual client that has any."""
    if not spec.dataset.parts or kind is not Kind.TRAIN:
        return fixed_parts(ranges, spec.recipe, kind)
    of_shard = spec.dataset.part_of_shard
    return [count_samples(tuple(some)) for _, some in groupby(ranges, key=lambda one: of_shard[one.shard])]
