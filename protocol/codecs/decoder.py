"""What all decoders share: chunks that stay in the cache, and adding them to a running sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.compression import CodecSpec
from protocol.tensors import TensorSpec

CHUNK_ELEMENTS: Final = 2**19
"""Elements decoded at once: a chunk of float32 scratch (2 MiB) stays in the cache between its uses, and the calls that
each chunk costs take little of its time."""


class Decoder(ABC):
    """One encoded tensor. Decoded values are float32, whatever the layout's dtype.

    Each value is made by operations that IEEE 754 rounds once (a product, a conversion), so that ``read`` and
    ``decode`` give the same bits on every machine and for every chunk size. ``add_to`` may fuse a product with a sum:
    it gives the same bits on one kind of machine.
    """

    dtype = torch.float32
    """The dtype of decoded values."""
    chunk_elements = CHUNK_ELEMENTS
    """Elements added at once."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        self.spec = spec
        self._reader = reader
        self._codec = codec
        self._scratch = scratch

    @abstractmethod
    def read(self, start: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` of ``dtype`` with the decoded elements from ``start`` on."""

    def decode(self) -> Tensor:
        """Return all of it in the layout's shape."""
        values = torch.empty(self.spec.elements, dtype=self.dtype)
        for start, stop in chunks_of(self.spec.elements):
            self.read(start, values[start:stop])
        return values.reshape(self.spec.shape)

    def add_to(self, total: Tensor, weight: float, *, overwrite: bool = False) -> None:
        """Add ``weight`` times the decoded tensor to ``total`` ([elements] float32 or float64), chunk by chunk.

        With ``overwrite`` the sum starts here, whatever ``total`` holds.
        """
        for start, stop in chunks_of(self.spec.elements, self.chunk_elements):
            chunk = total[start:stop]
            if overwrite:
                chunk.zero_()
            self._add(chunk, start, weight)

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        """Add to a chunk of the total that begins at element ``start``."""
        values = self._scratch.take("decoded", chunk.numel(), self.dtype)
        self.read(start, values)
        self._add_values(chunk, values, weight)

    def _add_values(self, chunk: Tensor, values: Tensor, weight: float) -> None:
        # A mixed-dtype add_ is 6 times slower: convert into scratch that stays in the cache.
        if values.dtype != chunk.dtype:
            converted = self._scratch.take("converted", chunk.numel(), chunk.dtype)
            values = converted.copy_(values)
        chunk.add_(values, alpha=weight)

    def _part(self, part: str) -> Elements:
        return Elements(self._reader, self.spec.name, part, self._scratch)


class PlainDecoder(Decoder):
    """A tensor stored element by element, as it is or in 16 bits. Of float64 it makes float64, of integers integers."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch, part: str = "") -> None:
        super().__init__(reader, spec, codec, scratch)
        self._stored = Elements(reader, spec.name, part, scratch)
        small = self._stored.dtype in {torch.float16, torch.bfloat16}
        self.dtype = torch.float32 if small else self._stored.dtype

    def read(self, start: int, out: Tensor) -> None:
        """Fill ``out`` with elements from ``start`` on."""
        out.copy_(self._stored.read(start, start + out.numel()))

    def _add(self, chunk: Tensor, start: int, weight: float) -> None:
        self._add_values(chunk, self._stored.read(start, start + chunk.numel()), weight)

    def take_maximum(self, total: Tensor, *, overwrite: bool = False) -> None:
        """Keep the larger one of each element and its like in ``total``, a tensor of the stored dtype."""
        for start, stop in chunks_of(self.spec.elements):
            chunk, stored = total[start:stop], self._stored.read(start, stop)
            if overwrite:
                chunk.copy_(stored)
            else:
                torch.maximum(chunk, stored, out=chunk)


def chunks_of(elements: int, step: int = CHUNK_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Yield the start and stop of each chunk."""
    for start in range(0, elements, step):
        yield start, min(elements, start + step)
