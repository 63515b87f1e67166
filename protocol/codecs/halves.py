"""fp16 and bf16: each element in 16 bits, rounded to the nearest (ties to even)."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.decoder import PlainDecoder
from protocol.codecs.reading import Reader, Scratch
from protocol.compression import CodecSpec
from protocol.tensors import TensorSpec

LARGEST_FP16 = torch.finfo(torch.float16).max


def encode_fp16(values: Tensor, _codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values; magnitudes over 65504 become that, and error feedback brings the rest later."""
    return {"f16": values.flatten().clamp(-LARGEST_FP16, LARGEST_FP16).half()}


def encode_bf16(values: Tensor, _codec: CodecSpec) -> dict[str, Tensor]:
    """Encode float32 values."""
    return {"bf16": values.flatten().bfloat16()}


class Fp16Decoder(PlainDecoder):
    """Reads what ``encode_fp16`` wrote."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch, "f16")


class Bf16Decoder(PlainDecoder):
    """Reads what ``encode_bf16`` wrote."""

    def __init__(self, reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
        super().__init__(reader, spec, codec, scratch, "bf16")
