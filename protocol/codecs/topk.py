"""topk: the largest magnitudes of the whole tensor, exact, and where they are. Aji & Heafield, arXiv:1704.05021."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.codecs.sparse import SparseDecoder, largest
from protocol.compression import CodecSpec
from protocol.encoded import SEGMENT, count_chunks, kept
from protocol.tensors import TensorSpec

_HALF = SEGMENT // 2


def encode_topk(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: the ``density`` largest, with 16-bit indices in segments of 65536 elements."""
    flat = values.flatten()
    indices = largest(flat, kept(flat.numel(), codec.density))
    counts = torch.bincount(indices // SEGMENT, minlength=count_chunks(flat.numel(), SEGMENT))
    wrapped = (indices + _HALF) % SEGMENT - _HALF  # the same 16 bits, as a signed number
    return {"value": flat[indices], "index": wrapped.to(torch.int16), "count": counts.to(torch.int32)}


class SegmentIndices:
    """The indices of an encoded tensor, read by ranges of segments.

    ``counts`` [segments] are the numbers of values in each segment; ``total`` is their sum.
    """

    def __init__(self, reader: Reader, spec: TensorSpec, scratch: Scratch) -> None:
        self._stored = Elements(reader, spec.name, "index", scratch)
        self.counts = Elements(reader, spec.name, "count", scratch).read(0, count_chunks(spec.elements, SEGMENT)).long()
        self._ends = self.counts.cumsum(0)
        self.total = int(self._ends[-1])

    def read(self, first: int, last: int) -> tuple[slice, Tensor]:
        """Return which values are in segments ``first`` to ``last``, and their positions in the tensor, int64."""
        counts = self.counts[first:last]
        entries = slice(int(self._ends[first] - counts[0]), int(self._ends[last - 1]))
        starts = torch.arange(first * SEGMENT, last * SEGMENT, SEGMENT)
        positions = self._stored.read(entries.start, entries.stop).long().bitwise_and_(SEGMENT - 1)
        return entries, positions.add_(starts.repeat_interleave(counts))


class TopkDecoder(SparseDecoder):
    """Reads what ``encode_topk`` wrote."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._values = self._part("value")
        self._indices = SegmentIndices(reader, spec, scratch)

    def _entries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        entries, positions = self._indices.read(start // SEGMENT, count_chunks(stop, SEGMENT))
        positions -= start
        return positions, self._values.read(entries.start, entries.stop)
