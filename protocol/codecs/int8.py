"""int8: each element in 8 bits, with a scale for each block. Dettmers et al., arXiv:2110.02861."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.blockwise import BlockwiseDecoder, scale_down
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.tensors import TensorSpec


def encode_int8(values: Tensor, codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values: q = round(x / scale), scale = largest magnitude of the block / 127."""
    numbers, scales = scale_down(values, codec.block, 127)
    return {"q": numbers.to(torch.int8), "scale": scales}


class Int8Decoder(BlockwiseDecoder):
    """Reads what ``encode_int8`` wrote: q x scale."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch)
        self._numbers = self._part("q")

    def _read_numbers(self, start: int, out: Tensor) -> None:
        out.copy_(self._numbers.read(start, start + out.numel()))
