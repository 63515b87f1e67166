"""Sizing work to the machines: how a round's samples are parted among clients."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, islice
from typing import Final

from coordinator.epoch import in_stretches
from coordinator.records import SampleRange
from protocol.assignments import Kind
from protocol.recipe import DataOrder, Mode, Recipe
from protocol.task_length import smallest_part

_LOOKED_AT: Final = 16
"""So many clients are compared for a part."""
_SLOWEST: Final = 1e-9
_FASTEST: Final = 1e15
"""Samples per second beyond which a speed is no measurement."""


def shares(samples: int, speeds: Mapping[str, float], quantum: int = 1) -> dict[str, int]:
    """Part ``samples`` among clients in proportion to their speed, by largest remainder.

    ``speeds``: samples per second by client; what is no speed at all (NaN, 0 or less) counts as the slowest of the
    others. Shares are multiples of ``quantum``, but for the last one, which takes what is left over. Clients whose
    share would be 0 are left out. The result is in the order of ``speeds`` and adds up to ``samples``.
    """
    units = max(samples // quantum, 1)
    weights = _weights(speeds)
    total = sum(weights.values())
    exact = {client: units * weight / total for client, weight in weights.items()}
    parts = {client: int(x) for client, x in exact.items()}
    rest = units - sum(parts.values())
    if 0 < rest <= len(parts):
        for client in sorted(exact, key=lambda c: parts[c] - exact[c])[:rest]:
            parts[client] += 1
    elif rest:  # so many units that floats can't count them
        parts[max(parts, key=parts.__getitem__)] += rest
    sizes = {client: n * quantum for client, n in parts.items() if n > 0}
    last = next(reversed(sizes))
    sizes[last] += samples - units * quantum
    return sizes


def _weights(speeds: Mapping[str, float]) -> Mapping[str, float]:
    """Return the speeds as weights with a finite sum that is over 0; ordinary speeds as they are."""
    if all(_SLOWEST <= speed <= _FASTEST for speed in speeds.values()):
        return speeds
    usable = [min(max(speed, _SLOWEST), _FASTEST) for speed in speeds.values() if speed > 0]  # false for NaN
    slowest = min(usable, default=1.0)
    return {client: min(max(s, _SLOWEST), _FASTEST) if s > 0 else slowest for client, s in speeds.items()}


def share_quantum(recipe: Recipe) -> int:
    """Return what a client's share of a round is a multiple of.

    In weights mode a whole batch, so that every local step has its full size; in gradients mode the smallest part.
    """
    return recipe.batch_samples if recipe.mode is Mode.WEIGHTS else smallest_part(recipe)


def without_stray(wanted: int, left: int, smallest: int) -> int:
    """Return how many of the ``left`` samples of an epoch to take where ``wanted`` would be taken, at least 0.

    Never so many that fewer than ``smallest`` stay behind, which would be a batch of their own: those come along.
    Fewer than ``smallest`` are taken only where there are no more.
    """
    if left - wanted < smallest:
        return left
    return wanted if wanted >= smallest else 0


def fixed_sizes(samples: int, recipe: Recipe) -> list[int]:
    """Part ``samples`` by the recipe alone: equal parts, and what is left over.

    Too little for a part joins the last one. In weights mode a part's default size is a multiple of the batch.
    """
    quantum = share_quantum(recipe)
    size = recipe.part_samples or -(-recipe.round_samples // (recipe.min_clients * quantum)) * quantum
    full, rest = divmod(samples, size)
    sizes = [size] * full
    if rest >= smallest_part(recipe) or not sizes:
        return [*sizes, rest] if rest else sizes
    return [*sizes[:-1], sizes[-1] + rest]


def fixed_parts(ranges: Sequence[SampleRange], recipe: Recipe, kind: Kind) -> list[int]:
    """Return the sizes of a step's fixed parts: of a round that is read in order there is one part of each stretch."""
    if recipe.order is DataOrder.SEQUENTIAL and kind is Kind.TRAIN:
        return [count_samples(stretch) for stretch in in_stretches(ranges, recipe.min_clients)]
    return fixed_sizes(count_samples(ranges), recipe)


def by_affinity(
    ranges: Sequence[SampleRange], sizes: Mapping[str, int], shards: Mapping[str, Collection[int]]
) -> list[str]:
    """Order the clients along ``ranges`` so that each part goes to one that holds its shards, as far as possible.

    Greedy, from the first part on: of the clients that are left, the one with the most samples of its part at hand,
    and of equals the first; where very many are left, of the first ones that hold the part's first shard, and the
    first of all. ``sizes`` are the parts' samples and ``shards`` the held shards' indices, by client.
    """
    places = {client: place for place, client in enumerate(sizes)}
    left = dict.fromkeys(sizes)
    if not any(shards[client] for client in sizes):
        return list(left)
    holders = _Holders(ranges, shards, places)
    line, start = Line(ranges), 0
    order: list[str] = []
    while left:
        some = left if len(left) <= _LOOKED_AT else holders.of(line.shard_at(start), next(iter(left)))
        chosen = max(some, key=lambda c: (line.at_hand(start, sizes[c], shards[c]), -places[c]))
        order.append(chosen)
        del left[chosen]
        holders.drop(chosen)
        start += sizes[chosen]
    return order


class _Holders:
    """Which clients of those that are left hold which shards of a round; of one client, and of one shard, not all."""

    def __init__(
        self, ranges: Sequence[SampleRange], shards: Mapping[str, Collection[int]], places: Mapping[str, int]
    ) -> None:
        wanted = {r.shard for r in ranges}
        self._shards = {client: list(islice(wanted.intersection(shards[client]), _LOOKED_AT * 2)) for client in places}
        self._clients: dict[int, dict[str, None]] = {}
        for client in places:
            for shard in self._shards[client]:
                self._clients.setdefault(shard, {})[client] = None

    def of(self, shard: int, first: str) -> list[str]:
        """Return the first clients that are left and hold a shard, and ``first``."""
        found = list(islice(self._clients.get(shard, ()), _LOOKED_AT))
        return found if first in found else [*found, first]

    def drop(self, client: str) -> None:
        """A client has its part."""
        for shard in self._shards[client]:
            del self._clients[shard][client]


class Line:
    """Ranges laid end to end, with their places."""

    def __init__(self, ranges: Sequence[SampleRange]) -> None:
        self._ranges = ranges
        self._ends = list(accumulate(r.samples for r in ranges))

    def __len__(self) -> int:
        """Count the ranges."""
        return len(self._ranges)

    def shard_at(self, place: int) -> int:
        """Return the shard of the sample at a place."""
        return self._ranges[min(bisect_right(self._ends, place), len(self._ranges) - 1)].shard

    def at_hand(self, start: int, samples: int, shards: Collection[int]) -> int:
        """Count how many of so many samples from a place on lie in these shards."""
        count, stop = 0, start + samples
        for index in range(bisect_right(self._ends, start), len(self._ranges)):
            end = self._ends[index]
            begin = end - self._ranges[index].samples
            if begin >= stop:
                break
            if self._ranges[index].shard in shards:
                count += min(end, stop) - max(begin, start)
        return count

    def between(self, start: int, stop: int) -> list[int]:
        """Return the shards of the samples from one place to another."""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        return [r.shard for r in self._ranges[first : last + 1]]


def samples_at_hand(ranges: Sequence[SampleRange], shards: Collection[int]) -> int:
    """Count the samples of the ranges that lie in these shards."""
    return sum(r.samples for r in ranges if r.shard in shards)


def head_of(ranges: Sequence[SampleRange], samples: int) -> tuple[SampleRange, ...]:
    """Return the first so many samples of the ranges."""
    return cut(ranges, [samples])[0]


def cut(ranges: Sequence[SampleRange], sizes: Sequence[int]) -> list[tuple[SampleRange, ...]]:
    """Cut a sequence of ranges into consecutive pieces of ``sizes`` samples, at most the whole together."""
    pieces: list[tuple[SampleRange, ...]] = []
    queue = list(reversed(ranges))
    for size in sizes:
        piece: list[SampleRange] = []
        missing = size
        while missing:
            head = queue.pop()
            used = head.samples
            if used > missing:
                used = missing
                queue.append(SampleRange(head.shard, head.start + used, head.stop))
                head = SampleRange(head.shard, head.start, head.start + used)
            piece.append(head)
            missing -= used
        pieces.append(tuple(piece))
    return pieces


def count_samples(ranges: Sequence[SampleRange]) -> int:
    """Count the samples of all ranges."""
    return sum(r.samples for r in ranges)
