"""demo: the largest coefficients of a cosine transform of each chunk. Peng, Quesnelle & Kingma, arXiv:2411.19870.

A chunk is 4096 elements that follow each other, transformed as a square of 64 rows by the orthonormal DCT-II in both
directions (the paper cuts each matrix into squares instead). What is not sent stays in the residual of error feedback:
that is the paper's momentum, from which it subtracts what it sends.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from protocol.codecs.chunk_indices import ChunkIndices, in_chunks, pack_indices
from protocol.codecs.decoder import Decoder
from protocol.codecs.reading import Reader, Scratch
from protocol.codecs.sparse import SparseDecoder, largest
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


def inverse(coefficients: Tensor, scratch: Scratch) -> Tensor:
    """Transform the coefficients of whole chunks back, in place ([chunks * 4096] float32 or float64)."""
    squares = coefficients.view(-1, SIDE, SIDE)
    halfway = scratch.take("halfway", coefficients.numel(), coefficients.dtype).view(squares.shape)
    basis = BASIS.to(coefficients.dtype)
    torch.matmul(squares, basis, out=halfway)
    torch.matmul(basis.T, halfway, out=squares)
    return coefficients


class CoefficientDecoder(SparseDecoder):
    """The coefficients that ``encode_demo`` wrote, those of the filled-up last chunk too."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        chunks = count_chunks(spec.elements, CHUNK)
        super().__init__(reader, replace(spec, shape=(chunks * CHUNK,)), codec, scratch)
        self._indices = ChunkIndices(reader, spec, codec, scratch)
        self._values = self._part("value")

    def _entries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        first, last = start // CHUNK, count_chunks(stop, CHUNK)
        count = self._indices.count
        return self._indices.read(first, last, origin=start), self._values.read(first * count, last * count).float()


class DemoDecoder(Decoder):
    """Reads what ``encode_demo`` wrote.

    ``read`` sums products one by one in a fixed order, for the same bits on every machine; ``add_to`` takes the matrix
    product, whose order is the library's, and is far faster.
    """

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self.coefficients = CoefficientDecoder(reader, spec, codec, scratch)

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with the inverse transform of the coefficients."""
        coefficients = self._coefficients(start, start + out.numel()).view(-1, SIDE, SIDE)
        halfway, squares, product = (torch.zeros_like(coefficients) for _ in range(3))
        for frequency in range(SIDE):
            basis = BASIS[frequency]
            halfway += torch.mul(coefficients[:, frequency, None, :], basis[:, None], out=product)
        for frequency in range(SIDE):
            basis = BASIS[frequency]
            squares += torch.mul(halfway[:, :, frequency, None], basis, out=product)
        out.copy_(squares.view(-1)[start % CHUNK :][: out.numel()])

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        values = inverse(self._coefficients(start, start + chunk.numel()), self._scratch)
        self._add_values(chunk, values[start % CHUNK :][: chunk.numel()], weight)

    def _coefficients(self, start: int, stop: int) -> Tensor:
        """Return those of the chunks that the elements are in."""
        first, last = start // CHUNK, count_chunks(stop, CHUNK)
        coefficients = self._scratch.take("coefficients", (last - first) * CHUNK, torch.float32)
        self.coefficients.read(first * CHUNK, coefficients)
        return coefficients
