"""Weights as exact integers: each sample of each epoch has a value of its own, and a model is the sum of what it saw.

A sample that was lost, or folded twice, is visible in the model itself, whatever the books say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from coordinator.records import SampleRange
from protocol.aggregates import AggregateName
from protocol.digests import digest_bytes
from protocol.recipe import Recipe
from protocol.tasks import BlobRef

_SPREAD = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


@lru_cache(maxsize=4096)
def _running_sums(epoch: int, shard: int, samples: int) -> list[int]:
    values = (((epoch << 40 | shard << 20 | row) * _SPREAD) & _WORD for row in range(1, samples + 1))
    return [0, *accumulate(value * value >> 40 for value in values)]


def value_of(epoch: int, ranges: Iterable[SampleRange]) -> int:
    """Return what training on these samples adds to a model."""
    return sum(
        (sums := _running_sums(epoch, r.shard, 1 << (r.stop - 1).bit_length()))[r.stop] - sums[r.start] for r in ranges
    )


def aggregate_of(recipe: Recipe, updates: Iterable[tuple[str, int]]) -> int:
    """Return what a round with these updates, each with its client, adds to a model: a stand-in for the aggregate.

    A robust one is no sum: which updates one round counted together, and which of them are one client's, is visible in
    the model, and not their order.
    """
    by_client: Counter[str] = Counter()
    for client_id, value in updates:
        by_client[client_id] += value
    votes = sorted(by_client.values())
    match recipe.aggregate:
        case AggregateName.MEDIAN if votes:
            return votes[len(votes) // 2]
        case AggregateName.TRIMMED_MEAN:
            cut = min(math.ceil(recipe.trim_share * len(votes)), (len(votes) - 1) // 2) if votes else 0
            return sum(votes[cut : len(votes) - cut])
        case AggregateName.GEOMETRIC_MEDIAN if votes:
            return votes[(len(votes) - 1) // 2]
        case AggregateName.KRUM if votes:
            return _by_closeness(votes, recipe.byzantine)[0]
        case AggregateName.MULTI_KRUM if votes:
            return sum(_by_closeness(votes, recipe.byzantine)[: max(len(votes) - recipe.byzantine, 1)])
        case AggregateName.BULYAN if votes:
            return sum(votes[recipe.byzantine : max(len(votes) - recipe.byzantine, recipe.byzantine + 1)])
        case AggregateName.NORM_BOUNDING | AggregateName.CENTERED_CLIPPING if votes:
            return sum(min(vote, votes[(len(votes) - 1) // 2]) for vote in votes)
        case _:
            return sum(votes)


def _by_closeness(votes: list[int], byzantine: int) -> list[int]:
    """Return the votes, those first that are closest to most others."""
    near = max(len(votes) - byzantine - 2, 1)

    def score(vote: int) -> int:
        return sum(sorted(abs(vote - other) for other in votes)[1 : near + 1])

    return sorted(votes, key=lambda vote: (score(vote), vote))


def state_of(weights_digest: str) -> BlobRef:
    """Return the inner optimizer's state of a version: it is that of the updates which the weights are of."""
    digest = digest_bytes(f"the state of {weights_digest}".encode())
    return BlobRef.model_construct(digest=digest, size_bytes=8, inline=None)


@dataclass(frozen=True, slots=True)
class Update:
    """The content of an update: whose it is, and what it adds."""

    assignment_id: str
    value: int
    samples: int
    masked: int | None = None
    """What of it leaves the client, where its round is a secure sum: the server must not need ``value``."""

    def ref(self) -> BlobRef:
        """Return its name. The same work makes the same bytes."""
        return BlobRef.model_construct(digest=digest_bytes(repr(self).encode()), size_bytes=8, inline=None)
