"""Aggregates that a few wrong or hostile updates cannot move far: median and trimmed mean of each coordinate.

Every client has one vote, whatever its samples: they are not the sender's alone to choose, but whoever seems fast gets
more of them, and a weight of its own would let one sender outvote all others.

All votes are read side by side, block by block, and each block's rows are sorted by a network of minima and maxima:
every step is one vector operation on whole rows, and steps that the wanted ranks do not depend on are left out.
Sources: Yin et al., arXiv:1803.01498 (both aggregates and their rates); Batcher 1968 as in Knuth, TAOCP vol. 3,
5.2.2, algorithm M (merge exchange), for any number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from coordinator.numerics.votes import Row, Vote, VotingAggregate
from protocol.codecs import Scratch
from protocol.codecs.decoder import chunks_of
from protocol.compression import CodecSpec
from protocol.tensors import Layout, TensorSpec

_BLOCK_BYTES: Final = 2**21
"""Of all rows of a block together: they stay in the cache from the first step to the last."""
_LEAST_ELEMENTS: Final = 2**12
"""Of a block, however many rows: with fewer, calling torch would take longer than its work."""
_ROUNDING: Final = 1e-9
"""0.07 of 100 updates are 7 of them, whatever floats say."""


class CompareExchange(NamedTuple):
    """Rows ``low`` and ``high`` become their minimum and their maximum, as far as either is wanted."""

    low: int
    high: int
    wants_low: bool
    wants_high: bool


class TrimmedMean(VotingAggregate):
    """The mean of each coordinate's values without the smallest and the largest ones.

    ``trim_share`` (over 0) of the votes is left out at either end, rounded up, so that one at least is, and at most
    as many as leave one or two in the middle. It holds against wrong votes as long as they are no more than that. Of
    one or two votes there is nothing to leave out: then it is their plain mean.
    Integers and bools are the lower median of the votes' values.
    Memory: the result; of n votes n + 1 rows of a block (together some 2 MiB, or with hundreds of votes 16 KiB each),
    and for each update scratch of about its row's size.
    Source: Yin et al., arXiv:1803.01498, definition 2, with beta = ``trim_share``.
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None, trim_share: float) -> None:
        super().__init__(layout, codec)
        self._trim_share = trim_share

    def _settle(self, votes: Sequence[Vote]) -> None:
        for spec, out in self._results.items():
            self._settle_one(votes, spec, out)

    def _settle_one(self, votes: Sequence[Vote], spec: TensorSpec, out: Tensor) -> None:
        trim = self._trim(len(votes)) if spec.is_float else _most_trimmed(len(votes))
        trimmed_mean(self._rows(votes, spec), out, trim, self._scratch)

    def _trim(self, votes: int) -> int:
        wanted = math.ceil(self._trim_share * votes - _ROUNDING)
        return min(wanted, _most_trimmed(votes))

    def _borne(self, votes: int) -> int:
        return self._trim(votes)


class Median(TrimmedMean):
    """The middle one of each coordinate's values; of an even number the mean of the two in the middle.

    It holds against wrong updates as long as they are fewer than half. All else is as with its base class.
    Source: Yin et al., arXiv:1803.01498, definition 1.
    """

    def __init__(self, layout: Layout, codec: CodecSpec | None = None) -> None:
        super().__init__(layout, codec, trim_share=0.5)


def trimmed_mean(rows: Sequence[Row | Tensor], out: Tensor, trim: int, scratch: Scratch | None = None) -> None:
    """Write the mean of each coordinate's values without the ``trim`` smallest and the ``trim`` largest to ``out``.

    ``rows`` are read block by block, or are 1-D tensors (of a memory-map, say), of ``out``'s length and of one dtype,
    ``out``'s or a narrower float; integers and bools get the lowest value that is left. The result is never outside of
    the values that are left, and does not depend on the order of the rows, to the bit.
    Raises: ValueError if nothing would be left.
    """
    if trim < 0 or 2 * trim >= len(rows):
        raise ValueError(f"{trim} values from either end of {len(rows)} leave nothing")
    combined(rows, out, _average, trim=trim, scratch=scratch)


def combined(
    rows: Sequence[Row | Tensor],
    out: Tensor,
    combine: Callable[[list[Tensor], Tensor], None],
    *,
    trim: int = 0,
    scratch: Scratch | None = None,
) -> None:
    """Have ``combine`` write what the ascending values of each coordinate become, block by block.

    It is given a block's rows in order of rank, without the ``trim`` smallest and largest, and the block of ``out``.
    """
    shared, dtype = scratch or Scratch(), rows[0].dtype
    for start, stop in chunks_of(out.numel(), _block_elements(len(rows), dtype)):
        block = shared.take("rows", (len(rows) + 1) * (stop - start), dtype).view(len(rows) + 1, -1)
        *values, spare = block.unbind()
        for row, target in zip(rows, values, strict=True):
            _read(row, start, target)
        kept = _sorted(values, spare, trim)[trim : len(rows) - trim]
        combine(kept, out[start:stop])


def median(rows: Sequence[Row | Tensor], out: Tensor, scratch: Scratch | None = None) -> None:
    """Write each coordinate's median to ``out``: of an even number of rows the mean of the two in the middle."""
    trimmed_mean(rows, out, _most_trimmed(len(rows)), scratch)


@lru_cache(maxsize=16)
def sorting_network(rows: int, trim: int = 0) -> tuple[CompareExchange, ...]:
    """Return the steps that bring the ranks from ``trim`` to ``rows - trim`` to their places (0 sorts all rows)."""
    wanted = set(range(trim, rows - trim))
    steps: list[CompareExchange] = []
    for low, high in reversed(list(_merge_exchange(rows))):
        if low in wanted or high in wanted:
            steps.append(CompareExchange(low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(steps))


def _merge_exchange(rows: int) -> Iterator[tuple[int, int]]:
    """Yield the comparisons of Knuth's algorithm M; its letters are kept."""
    t = max(1, (rows - 1).bit_length())
    p = 1 << (t - 1)
    while p > 0:
        q, r, d = 1 << (t - 1), 0, p
        while d > 0:
            yield from ((i, i + d) for i in range(rows - d) if i & p == r)
            d, q, r = q - p, q >> 1, p
        p >>= 1


def _sorted(values: list[Tensor], spare: Tensor, trim: int) -> list[Tensor]:
    """Return the rows in order of rank (of the ranks that are kept), in the same memory and ``spare``."""
    for low, high, wants_low, wants_high in sorting_network(len(values), trim):
        if wants_low and wants_high:
            torch.minimum(values[low], values[high], out=spare)
            torch.maximum(values[low], values[high], out=values[high])
            values[low], spare = spare, values[low]
        elif wants_low:
            torch.minimum(values[low], values[high], out=values[low])
        else:
            torch.maximum(values[low], values[high], out=values[high])
    return values


def _average(ascending: list[Tensor], out: Tensor) -> None:
    out.copy_(ascending[0])
    if not out.is_floating_point():
        return
    if len(ascending) > 1:
        for row in ascending[1:]:
            out.add_(row)
        out.div_(len(ascending))
        # rounding, or an overflow on the way, must not lead out of the values; and of equal ones comes the same
        torch.maximum(out, ascending[0], out=out)
        torch.minimum(out, ascending[-1], out=out)
    out.add_(0.0)  # which of two zeros is the smaller one depends on their order: -0.0 becomes 0.0


def _read(row: Row | Tensor, start: int, target: Tensor) -> None:
    if isinstance(row, Tensor):
        target.copy_(row[start : start + target.numel()])
    else:
        row.read(start, target)


def _most_trimmed(rows: int) -> int:
    """Return how many values may be left out at either end, so that one or two are left: the median's."""
    return (rows - 1) // 2


def _block_elements(rows: int, dtype: torch.dtype) -> int:
    return max(_LEAST_ELEMENTS, _BLOCK_BYTES // (rows * dtype.itemsize) // _LEAST_ELEMENTS * _LEAST_ELEMENTS)
