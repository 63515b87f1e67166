"""Which samples a round consists of: a pure function of the seed, the epoch and the cursor.

An epoch visits the training shards in a seeded order, ``stripe_shards`` at a time. Within a stripe samples are
drawn round robin, one from each shard in turn, so that a round mixes shards whatever its size, and a client that
always gets the same part of a round always needs the same shards. Who trains what has no influence here: more or
fewer clients change the speed of a task and never its batches.

Where the rows are to be read in order, the shards are visited as they are numbered, which is part by part of all
stretches of the data; a stripe is one part of each, and a round takes as many rows of every stretch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.records import SampleRange
from protocol.digests import new_hasher
from protocol.tasks import Shard


def epoch_order(shards: Sequence[Shard], seed: int, epoch: int) -> list[Shard]:
    """Return ``shards`` in the order in which ``epoch`` visits them."""
    prefix = f"order/{seed}/{epoch}/"
    return sorted(shards, key=lambda shard: new_hasher(f"{prefix}{shard.index}".encode()).digest())


def drawn(sizes: Sequence[int], count: int) -> list[int]:
    """Count how many of the first ``count`` samples, drawn round robin, come from each shard of a stripe.

    ``sizes`` are the shards' samples; ``0 <= count <= sum(sizes)``. Each entry never shrinks as ``count`` grows.
    """
    low, high = 0, max(sizes, default=0)
    while low < high:  # the number of complete passes over the shards that still have samples
        middle = (low + high + 1) // 2
        if sum(min(n, middle) for n in sizes) <= count:
            low = middle
        else:
            high = middle - 1
    taken = [min(n, low) for n in sizes]
    rest = count - sum(taken)
    for i, n in enumerate(sizes):
        if rest and n > low:
            taken[i] += 1
            rest -= 1
    return taken


def _stripes(order: Sequence[Shard], width: int) -> Iterator[Sequence[Shard]]:
    for start in range(0, len(order), width):
        yield order[start : start + width]


def take(order: Sequence[Shard], cursor: int, count: int, stripe_shards: int) -> tuple[SampleRange, ...]:
    """Return samples ``cursor`` to ``cursor + count`` of the epoch (fewer at its end), as ranges of shards.

    ``order`` comes from ``epoch_order``; ranges count in each shard's own shuffled order.
    """
    ranges: list[SampleRange] = []
    first, last = cursor, cursor + count
    for stripe in _stripes(order, stripe_shards):
        sizes = [s.samples for s in stripe]
        total = sum(sizes)
        if last <= 0:
            break
        if first < total:
            starts = [0] * len(sizes) if first <= 0 else drawn(sizes, first)
            stops = sizes if last >= total else drawn(sizes, last)
            ranges += [
                SampleRange(shard.index, a, b) for shard, a, b in zip(stripe, starts, stops, strict=True) if a < b
            ]
        first, last = first - total, last - total
    return tuple(ranges)


def in_stretches(ranges: Sequence[SampleRange], stretches: int) -> list[tuple[SampleRange, ...]]:
    """Return the ranges of each stretch that has any, in its order. Stretch n has shards n, n + ``stretches`` …."""
    found: list[list[SampleRange]] = [[] for _ in range(stretches)]
    for one in ranges:
        found[one.shard % stretches].append(one)
    return [tuple(ranges) for ranges in found if ranges]
