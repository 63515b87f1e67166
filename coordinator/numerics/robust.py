"""Aggregates that a few wrong or hostile updates cannot move far: median and trimmed mean of each coordinate.

All updates are read side by side, block by block, and each block's rows are sorted by a network of minima and maxima:
every step is one vector operation on whole rows, and steps that the wanted ranks do not depend on are left out.
Sources: Yin et al., arXiv:1803.01498 (both aggregates and their rates); Batcher 1968 as in Knuth, TAOCP vol. 3,
5.2.2, algorithm M (merge exchange), for any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from coordinator.numerics.aggregation import EmptyRound
from protocol.codecs import Decoder, Reader, Scratch, decoder
from protocol.codecs.decoder import chunks_of
from protocol.compression import CodecSpec
from protocol.tensors import Layout

_BLOCK_BYTES: Final = 2**21
"""Of all rows of a block together: they stay in the cache from the first step to the last."""
_LEAST_ELEMENTS: Final = 2**12
"""Of a block, however many rows: with fewer, calling torch would take longer than its work."""


class Step(NamedTuple):
    """Rows ``low`` and ``high`` become their minimum and their maximum, as far as either is wanted."""

    low: int
    high: int
    wants_low: bool
    wants_high: bool


def robust_mean(
    readers: Sequence[Reader], layout: Layout, codec: CodecSpec, trimmed_fraction: float
) -> dict[str, Tensor]:
    """Return the trimmed mean of whole updates, in the layout's shapes; every update has the same vote.

    Of each coordinate's values the ``trimmed_fraction`` smallest and as many largest are left out (rounded down); 0.5
    is the median. Floats come in the dtype of decoded values (float64 for float64 parameters stored as they are, or
    else float32); of integers and bools the lower median is taken. The readers' headers have been checked.
    Memory: the result, and some blocks. Raises: EmptyRound if there is no reader.
    """
    if not readers:
        raise EmptyRound
    middle = (len(readers) - 1) // 2
    trim = min(middle, int(trimmed_fraction * len(readers)))
    scratch = Scratch()
    means: dict[str, Tensor] = {}
    for spec in layout.returned:
        rows = [decoder(reader, spec, codec) for reader in readers]
        out = torch.empty(spec.elements, dtype=rows[0].dtype)
        trimmed_mean(rows, out, trim if spec.is_float else middle, scratch)
        means[spec.name] = out.view(spec.shape)
    return means


def trimmed_mean(rows: Sequence[Decoder | Tensor], out: Tensor, trim: int, scratch: Scratch | None = None) -> None:
    """Write the mean of each coordinate's values without the ``trim`` smallest and the ``trim`` largest to ``out``.

    ``rows`` are decoders, or 1-D tensors (of a memory-map, say), of ``out``'s length and dtype; integers and bools get
    the lowest value that is left. The order of the rows does not matter, to the bit.
    Raises: ValueError if nothing would be left.
    """
    if trim < 0 or 2 * trim >= len(rows):
        raise ValueError(f"{trim} values from either end of {len(rows)} leave nothing")
    shared = scratch or Scratch()
    for start, stop in chunks_of(out.numel(), _block_elements(len(rows), out.dtype)):
        block = shared.take("rows", (len(rows) + 1) * (stop - start), out.dtype).view(len(rows) + 1, -1)
        *values, spare = block.unbind()
        for row, target in zip(rows, values, strict=True):
            _read(row, start, target)
        kept = _sorted(values, spare, trim)[trim : len(rows) - trim]
        _average(kept, out[start:stop])


def median(rows: Sequence[Decoder | Tensor], out: Tensor, scratch: Scratch | None = None) -> None:
    """Write each coordinate's median to ``out``: of an even number of rows the mean of the two in the middle."""
    trimmed_mean(rows, out, (len(rows) - 1) // 2, scratch)


@lru_cache(maxsize=256)
def sorting_network(rows: int, trim: int = 0) -> tuple[Step, ...]:
    """Return the steps that bring the ranks from ``trim`` to ``rows - trim`` to their places (0 sorts all rows)."""
    wanted = set(range(trim, rows - trim))
    steps: list[Step] = []
    for low, high in reversed(list(_merge_exchange(rows))):
        if low in wanted or high in wanted:
            steps.append(Step(low, high, low in wanted, high in wanted))
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


def _average(rows: list[Tensor], out: Tensor) -> None:
    out.copy_(rows[0])
    if out.is_floating_point():
        for row in rows[1:]:
            out.add_(row)
        out.div_(len(rows))


def _read(row: Decoder | Tensor, start: int, target: Tensor) -> None:
    if isinstance(row, Tensor):
        target.copy_(row[start : start + target.numel()])
    else:
        row.read(start, target)


def _block_elements(rows: int, dtype: torch.dtype) -> int:
    return max(_LEAST_ELEMENTS, _BLOCK_BYTES // (rows * dtype.itemsize))
