"""In which order samples are read: the same on every machine, from the task's seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from farm_client.data.seeds import derived_seed
from protocol.tasks import Split

_GOLDEN: Final = (math.sqrt(5) - 1) / 2


def shard_order(seed: int, epoch: int, shard: int, samples: int, split: Split) -> torch.Tensor:
    """Return the rows of a shard in the order in which an epoch reads them: [samples] int64.

    Training shards are shuffled anew each epoch; holdout shards are read as they are stored.
    """
    if split is Split.HOLDOUT:
        return torch.arange(samples)
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, shard))
    return torch.randperm(samples, generator=generator)


def mixed(rows: Sequence[int], seed: int) -> list[int]:
    """Return rows in a random order that depends only on the seed: a part of several shards, as one ``shuffle=True``.

    Read shard after shard, batches would have the same company in each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    return [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]


def order_of_streams(samples: int, streams: int) -> torch.Tensor:
    """Return the rows of a shard of as many rows of each stream, a batch of one row of each after the other: [samples].

    ``samples`` is a multiple of ``streams``; the shard's rows lie stream by stream.
    """
    return torch.arange(samples).view(streams, -1).T.reshape(-1)


class StrideOrder:
    """A fixed permutation of ``items`` in constant memory: row i is item (i * stride + start) mod items.

    The stride is near the golden ratio, so that any run of consecutive rows is spread evenly over the data set:
    shards of a data set that is sorted by class are mixed.
    """

    def __init__(self, items: int, seed: int) -> None:
        self._items = items
        self._start = derived_seed(seed, "start") % items if items else 0
        self._stride = next(k for k in range(max(1, round(items * _GOLDEN)), 2 * items + 2) if math.gcd(k, items) == 1)

    def item(self, row: int) -> int:
        """Return the item that row number ``row`` stands for."""
        return (row * self._stride + self._start) % self._items
