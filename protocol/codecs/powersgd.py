"""powersgd: a matrix as the product of two thin ones. Vogels, Karimireddy & Jaggi, arXiv:1905.13727.

A tensor of more than two dimensions is the matrix of its first dimension by all the others; vectors are stored as they
are. The paper keeps the right factor from round to round (warm start); here each call begins anew, with two
multiplications more, from a random matrix that the values themselves seed: equal values give equal bytes, and a
residual that one random matrix cannot see meets another one in the next round.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from protocol.codecs.blockwise import pieces
from protocol.codecs.decoder import Decoder
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.digests import digest_bytes
from protocol.tensors import TensorSpec


def encode_powersgd(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values M [rows, columns]: orthonormal p [rows, rank], q = M^T p [columns, rank] (algorithm 1)."""
    matrix = values.reshape(values.shape[0], -1)
    rank = min(codec.rank, *matrix.shape)
    seed = int(digest_bytes(matrix.contiguous().view(torch.uint8).numpy().data)[:14], 16)
    start = torch.randn(matrix.shape[1], rank, generator=torch.Generator().manual_seed(seed))
    # Only directions matter until the last product: those of tiny or huge values must not vanish or overflow.
    directions = matrix / matrix.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    left = _orthonormal(directions @ (directions.T @ _orthonormal(directions @ start)))
    return {"p": left.contiguous(), "q": (matrix.T @ left).contiguous()}


class PowerSgdDecoder(Decoder):
    """Reads what ``encode_powersgd`` wrote: p q^T.

    ``read`` sums over the rank in order, for the same bits on every machine; ``add_to`` takes the matrix product.
    ``left`` is p [rows, rank] and ``right`` is q^T [rank, columns].
    """

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        left, right = self._part("p"), self._part("q")
        rows, rank = reader.header.tensors[f"{spec.name}/p"].shape
        self.left = left.read(0, left.count).view(rows, rank)
        self.right = right.read(0, right.count).view(-1, rank).T.contiguous()

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with elements of the product."""
        for left, right, block in self._blocks(start, out):
            product = self._scratch.take("product", block.numel(), torch.float32).view(block.shape)
            block.zero_()
            for column, row in zip(left.T, right, strict=True):
                block.add_(torch.mul(column.unsqueeze(1), row, out=product))

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        if chunk.dtype != torch.float32:
            super()._add(chunk, start, weight)
            return
        for left, right, block in self._blocks(start, chunk):
            block.addmm_(left, right, alpha=weight)

    def _blocks(self, start: int, elements: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows of p, columns of q^T, and the block of ``elements`` that is their product: three at most."""
        columns = self.right.shape[1]
        for offset, rows, width in pieces(start, elements.numel(), columns):
            row, column = divmod(start + offset, columns)
            block = elements[offset : offset + rows * width].view(rows, width)
            yield self.left[row : row + rows], self.right[:, column : column + width], block


def _orthonormal(columns: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
