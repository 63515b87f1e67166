"""demo: the largest coefficients of a cosine transform of each chunk. Peng, Quesnelle & Kingma, arXiv:2411.19870.

A chunk is 4096 elements that follow each other, transformed as a square of 64 rows by the orthonormal DCT-II in both
directions (the paper cuts each matrix into squares instead). What is not sent stays in the residual of error feedback:
that is the paper's momentum, from which it subtracts what it sends.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from protocol.codecs.chunk_indices import ChunkIndices, in_chunks, pack_indices
from protocol.codecs.decoder import Decoder
from protocol.codecs.reading import Reader, Scratch
from protocol.codecs.sparse import largest
from protocol.compression import CodecSpec
from protocol.encoded import CHUNK, count_chunks, kept
from protocol.tensors import TensorSpec

SIDE: Final = 64


def _basis() -> Tensor:
    """Return the DCT-II matrix [frequency, position], orthonormal: each number rounded once to float32."""
    cosines = [
        [math.cos(math.pi * ((2 * position + 1) * frequency % 256) / 128) for position in range(SIDE)]
        for frequency in range(SIDE)
    ]
    lengths = torch.full((SIDE, 1), math.sqrt(2 / SIDE), dtype=torch.float64)
    lengths[0] = math.sqrt(1 / SIDE)
    return (torch.tensor(cosines, dtype=torch.float64) * lengths).float()


BASIS: Final = _basis()


def encode_demo(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: the ``density`` largest coefficients of each chunk, in bf16."""
    squares = in_chunks(values).view(-1, SIDE, SIDE)
    coefficients = (BASIS @ squares @ BASIS.T).view(-1, CHUNK)
    indices = largest(coefficients, kept(CHUNK, codec.density))
    return {**pack_indices(indices), "value": coefficients.gather(1, indices).bfloat16()}


class DemoDecoder(Decoder):
    """Reads what ``encode_demo`` wrote.

    ``read`` sums products one by one in a fixed order, for the same bits on every machine; ``add_to`` takes the matrix
    product, whose order is the library's, and is far faster.
    """

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._indices = ChunkIndices(reader, spec, codec, scratch)
        self._values = self._part("value")

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the inverse transform of the coefficients."""
        coefficients = self._coefficients(start, start + out.numel())
        halfway = self._zeros("halfway", coefficients)
        squares = self._zeros("squares", coefficients)
        product = self._zeros("product", coefficients)
        for frequency in range(SIDE):
            basis = BASIS[frequency]
            halfway += torch.mul(coefficients[:, frequency, None, :], basis[:, None], out=product)
        for frequency in range(SIDE):
            basis = BASIS[frequency]
            squares += torch.mul(halfway[:, :, frequency, None], basis, out=product)
        out.copy_(squares.view(-1)[start % CHUNK :][: out.numel()])

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        coefficients = self._coefficients(start, start + chunk.numel())
        halfway = torch.matmul(coefficients, BASIS, out=self._zeros("halfway", coefficients))
        squares = torch.matmul(BASIS.T, halfway, out=self._zeros("squares", coefficients))
        self._add_values(chunk, squares.view(-1)[start % CHUNK :][: chunk.numel()], weight)

    def _coefficients(self, start: int, stop: int) -> Tensor:
        """Return [chunks, 64, 64] of the chunks that the elements are in."""
        first, last = start // CHUNK, count_chunks(stop, CHUNK)
        count = self._indices.count
        coefficients = self._scratch.take("coefficients", (last - first) * CHUNK, torch.float32).view(-1, CHUNK)
        values = self._values.read(first * count, last * count).float().view(-1, count)
        return coefficients.zero_().scatter_(1, self._indices.read(first, last), values).view(-1, SIDE, SIDE)

    def _zeros(self, purpose: str, like: Tensor) -> Tensor:
        return self._scratch.take(purpose, like.numel(), torch.float32).zero_().view(like.shape)
