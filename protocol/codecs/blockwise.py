"""What int8, int4 and sign share: blocks of elements that follow each other, with one float32 scale each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from protocol.codecs.decoder import Decoder
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.encoded import count_chunks
from protocol.tensors import TensorSpec


def in_blocks(values: Tensor, block: int) -> Tensor:
    """Return the values as [blocks, block], the last one filled up with zeros."""
    missing = count_chunks(values.numel(), block) * block - values.numel()
    flat = values.flatten()
    padded = torch.nn.functional.pad(flat, (0, missing)) if missing else flat
    return padded.view(-1, block)


def scale_down(values: Tensor, block: int, levels: float) -> tuple[Tensor, Tensor]:
    """Return ([elements] whole numbers from -levels to levels, [blocks] scales): the largest magnitude is ``levels``.

    A block of zeros has scale 0.
    """
    blocks = in_blocks(values, block)
    scales = blocks.abs().amax(dim=1) / levels
    divisors = torch.where(scales > 0, scales, torch.ones_like(scales))
    whole = (blocks / divisors.unsqueeze(1)).round_().clamp_(-levels, levels)
    return whole.view(-1)[: values.numel()], scales


class BlockwiseDecoder(Decoder):
    """A stored whole number times its block's scale. Subclasses say how the numbers are stored."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._scales = self._part("scale")

    @abstractmethod
    def _read_numbers(self, start: int, out: Tensor) -> None:
        """Fill the float32 ``out`` with the stored numbers from element ``start`` on."""

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with numbers times scales."""
        self._read_numbers(start, out)
        for numbers, scales, _ in self._with_scales(start, out, out):
            numbers.mul_(scales)

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        if chunk.dtype != torch.float32:
            super()._add(chunk, start, weight)
            return
        numbers = self._scratch.take("decoded", chunk.numel(), torch.float32)
        self._read_numbers(start, numbers)
        for rows, scales, totals in self._with_scales(start, numbers, chunk):
            totals.addcmul_(rows, scales, value=weight)

    def _with_scales(self, start: int, numbers: Tensor, totals: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows of blocks, their scales as a column, and the same rows of ``totals``: at most three pieces."""
        block = self._codec.block
        first = start // block
        scales = self._scales.read(first, count_chunks(start + numbers.numel(), block)).unsqueeze(1)
        for offset, rows, width in pieces(start, numbers.numel(), block):
            row = (start + offset) // block - first
            piece = slice(offset, offset + rows * width)
            yield numbers[piece].view(rows, width), scales[row : row + rows], totals[piece].view(rows, width)


def pieces(start: int, elements: int, block: int) -> Iterator[tuple[int, int, int]]:
    """Cut elements from ``start`` on at the borders of blocks: the end of one, whole ones, the begin of the last.

    Yields: (offset, rows, width) of each piece that is not empty.
    """
    head = min(-start % block, elements)
    rows = (elements - head) // block
    tail = elements - head - rows * block
    for offset, count, width in ((0, 1, head), (head, rows, block), (elements - tail, 1, tail)):
        if count and width:
            yield offset, count, width
