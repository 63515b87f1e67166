"""int4: each element in 4 bits, with a scale for each block. Dettmers & Zettlemoyer, arXiv:2212.09720."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.blockwise import BlockwiseDecoder, scale_down
from protocol.codecs.packing import Fields, pack
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.tensors import TensorSpec


def encode_int4(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: q = round(x / scale), scale = largest magnitude of the block / 7; two's complement."""
    numbers, scales = scale_down(values, codec.block, 7)
    return {"q": pack(numbers.to(torch.int8).view(torch.uint8) & 0x0F, 4), "scale": scales}


class Int4Decoder(BlockwiseDecoder):
    """Reads what ``encode_int4`` wrote: q x scale."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._numbers = Fields(reader, spec.name, "q", 4, scratch)

    def _read_numbers(self, start: int, out: Tensor) -> None:
        out.copy_(self._numbers.read(start, start + out.numel(), torch.int8))
