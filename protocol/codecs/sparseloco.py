"""sparseloco: the largest magnitudes of each chunk of 4096, in two bits each. Sarfi et al., arXiv:2508.15706.

The two bits are the sign and which of the chunk's two magnitudes; those two are the best ones for the chunk in the
sense of least squares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.chunk_indices import ChunkIndices, in_chunks, pack_indices
from protocol.codecs.packing import Fields, pack
from protocol.codecs.reading import Reader, Scratch
from protocol.codecs.sparse import SparseDecoder, largest
from protocol.compression import CodecSpec
from protocol.encoded import CHUNK, count_chunks, kept
from protocol.tensors import TensorSpec

_IS_LARGE, _IS_NEGATIVE = 1, 2


def encode_sparseloco(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: ``density`` of each chunk, each as plus or minus the smaller or the larger scale."""
    chunks = in_chunks(values)
    indices = largest(chunks, kept(CHUNK, codec.density))
    chosen = chunks.gather(1, indices)
    scales, is_large = _two_means(chosen.abs())
    levels = is_large * _IS_LARGE + (chosen < 0) * _IS_NEGATIVE
    return {**pack_indices(indices), "level": pack(levels.to(torch.uint8).flatten(), 2), "scale": scales.bfloat16()}


class SparseLocoDecoder(SparseDecoder):
    """Reads what ``encode_sparseloco`` wrote."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._indices = ChunkIndices(reader, spec, codec, scratch)
        self._levels = Fields(reader, spec.name, "level", 2, scratch)
        self._scales = self._part("scale")

    def _entries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        first, last = start // CHUNK, count_chunks(stop, CHUNK)
        count = self._indices.count
        scales = self._scales.read(2 * first, 2 * last).float().view(-1, 2)
        levels = self._levels.read(first * count, last * count).long().view(-1, count)
        values = torch.cat([scales, -scales], dim=1).gather(1, levels).view(-1)
        return self._indices.read(first, last, origin=start), values


def _two_means(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """Split each row of [rows, count] magnitudes in two, so that their means represent them with the least error.

    Returns: ([rows, 2] the mean of the smaller ones and that of the larger ones, [rows, count] whether it is a larger
    one). In one dimension the best split is among those of the sorted row, and minimizing the squared error means
    maximizing the sum of (sum of a side)^2 / (count of it).
    """
    count = magnitudes.shape[1]
    ascending = magnitudes.sort(dim=1).values
    # Relative to the largest, so that squares neither vanish nor overflow.
    unit = ascending[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)
    sums = (ascending / unit).cumsum(dim=1)
    below = torch.arange(1, count + 1)
    above_sums = sums[:, -1:] - sums
    gains = sums.square() / below + above_sums.square() / (count - below).clamp(min=1)
    split = gains.argmax(dim=1, keepdim=True)
    low = sums.gather(1, split) / (split + 1)
    high = above_sums.gather(1, split) / (count - 1 - split).clamp(min=1)
    is_large = magnitudes > ascending.gather(1, split)
    return torch.cat([low, high], dim=1) * unit, is_large
