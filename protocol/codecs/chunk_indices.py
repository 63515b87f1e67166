"""What sparseloco and demo share: as many indices of 12 bits in every chunk of 4096, in ascending order.

The low eight bits of an index are a byte, the high four are packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.blockwise import in_blocks
from protocol.codecs.packing import Fields, pack
from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.compression import CodecSpec
from protocol.encoded import CHUNK, kept
from protocol.tensors import TensorSpec


def in_chunks(values: Tensor) -> Tensor:
    """Return the values as [chunks, 4096], the last one filled up with zeros."""
    return in_blocks(values, CHUNK)


def pack_indices(indices: Tensor) -> dict[str, Tensor]:
    """Return the parts for indices [chunks, count]."""
    flat = indices.flatten()
    return {"index": (flat & 0xFF).to(torch.uint8), "high": pack((flat >> 8).to(torch.uint8), 4)}


class ChunkIndices:
    """The indices of an encoded tensor, read by ranges of chunks."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        self.count = kept(CHUNK, codec.density)
        self._low = Elements(reader, spec.name, "index", scratch)
        self._high = Fields(reader, spec.name, "high", 4, scratch)

    def read(self, first: int, last: int, origin: int = 0) -> Tensor:
        """Return the places of chunks ``first`` to ``last``, counted from ``origin``: [chunks * count] int64."""
        begin, end = first * self.count, last * self.count
        places = self._high.read(begin, end).int().mul_(256).add_(self._low.read(begin, end)).view(-1, self.count)
        starts = torch.arange(first * CHUNK - origin, last * CHUNK - origin, CHUNK)
        return (places + starts.unsqueeze(1)).view(-1)
