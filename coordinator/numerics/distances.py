"""How far a round's votes are from each other, block by block and in float64, over all parameters.

Memory: one block of all votes, of some 2 MiB whatever the tensors' size, and a number for each pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from coordinator.numerics.votes import Row
from protocol.codecs import Scratch
from protocol.codecs.decoder import chunks_of

BLOCK_ELEMENTS: Final = 2**18
"""Of all votes together, in float64: they stay in the cache."""
_LEAST_ELEMENTS: Final = 2**12
"""Of one vote's row of a block, however many votes."""


class VoteBlock(NamedTuple):
    """A stretch of one tensor, as all votes have it: ``values`` are [votes, stop - start] float64."""

    start: int
    stop: int
    values: Tensor


def blocks_of(rows: Sequence[Row], elements: int, scratch: Scratch) -> Iterator[VoteBlock]:
    """Yield the rows' blocks one after the other, in the same memory; it may be written to."""
    for start, stop in chunks_of(elements, max(_LEAST_ELEMENTS, BLOCK_ELEMENTS // len(rows))):
        values = scratch.take("block of votes", len(rows) * (stop - start), torch.float64).view(len(rows), -1)
        for row, target in zip(rows, values.unbind(), strict=True):
            read = target if row.dtype is torch.float64 else scratch.take("row", stop - start, row.dtype)
            row.read(start, read)
            if read is not target:
                target.copy_(read)
        yield VoteBlock(start, stop, values)


def squared_distances(blocks: Iterable[VoteBlock], votes: int) -> Tensor:
    """Return the squared Euclidean distance of each pair of votes, [votes, votes] float64, symmetric to the bit.

    From sums of products, so what two votes have in common costs digits: the error is some 1e-16 of their squared
    norms, whatever a third one holds. A pair whose products overflow is infinitely far apart.
    """
    products = torch.zeros(votes, votes, dtype=torch.float64)
    for block in blocks:
        products.addmm_(block.values, block.values.T)
    products = products.triu() + products.triu(1).T
    norms = products.diagonal()
    found = (norms[:, None] + norms[None, :] - 2 * products).clamp_(min=0)
    return torch.where(found.isnan(), math.inf, found).fill_diagonal_(0)


def lower_median(values: Tensor) -> float:
    """Return the middle one of some numbers; of an even number the smaller one of the two."""
    return float(values.sort().values[(values.numel() - 1) // 2])
