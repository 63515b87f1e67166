"""sign: one bit for each element, with a scale for each block. Karimireddy et al., arXiv:1901.09847."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.blockwise import BlockwiseDecoder, in_blocks
from protocol.codecs.packing import Fields, pack
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.tensors import TensorSpec


def encode_sign(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: bit 1 for those below zero, scale = mean magnitude of the block."""
    sums = in_blocks(values, codec.block).abs().sum(dim=1)
    counts = torch.full_like(sums, codec.block)
    counts[-1] = values.numel() - codec.block * (sums.numel() - 1)
    return {"sign": pack((values.flatten() < 0).view(torch.uint8), 1), "scale": sums / counts}


class SignDecoder(BlockwiseDecoder):
    """Reads what ``encode_sign`` wrote: plus or minus the scale."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._signs = Fields(reader, spec.name, "sign", 1, scratch)

    def _read_numbers(self, start: int, out: Tensor) -> None:
        zero_or_minus_one = self._signs.read(start, start + out.numel(), torch.int8)
        out.copy_(zero_or_minus_one.bitwise_or_(1))
