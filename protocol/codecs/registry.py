"""Which functions and classes make up each codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from torch import Tensor

from protocol.codecs.decoder import Decoder, PlainDecoder
from protocol.codecs.demo import DemoDecoder, encode_demo
from protocol.codecs.halves import Bf16Decoder, Fp16Decoder, encode_bf16, encode_fp16
from protocol.codecs.int4 import Int4Decoder, encode_int4
from protocol.codecs.int8 import Int8Decoder, encode_int8
from protocol.codecs.powersgd import PowerSgdDecoder, encode_powersgd
from protocol.codecs.reading import Reader, Scratch
from protocol.codecs.sign import SignDecoder, encode_sign
from protocol.codecs.sparseloco import SparseLocoDecoder, encode_sparseloco
from protocol.codecs.topk import TopkDecoder, encode_topk
from protocol.compression import CodecName, CodecSpec
from protocol.encoded import parts_of
from protocol.errors import LayoutMismatch
from protocol.tensors import TensorSpec


class Codec(NamedTuple):
    """How one codec writes a tensor's parts, and how it reads them."""

    encode: Callable[[Tensor, CodecSpec], dict[str, Tensor]]
    """From float32 values in the layout's shape to the parts by their short names."""
    decoder: Callable[[Reader, TensorSpec, CodecSpec, Scratch], Decoder]


CODECS: Final[Mapping[CodecName, Codec]] = MappingProxyType(
    {
        CodecName.FP16: Codec(encode_fp16, Fp16Decoder),
        CodecName.BF16: Codec(encode_bf16, Bf16Decoder),
        CodecName.INT8: Codec(encode_int8, Int8Decoder),
        CodecName.INT4: Codec(encode_int4, Int4Decoder),
        CodecName.SIGN: Codec(encode_sign, SignDecoder),
        CodecName.TOPK: Codec(encode_topk, TopkDecoder),
        CodecName.SPARSELOCO: Codec(encode_sparseloco, SparseLocoDecoder),
        CodecName.DEMO: Codec(encode_demo, DemoDecoder),
        CodecName.POWERSGD: Codec(encode_powersgd, PowerSgdDecoder),
    }
)
"""Every codec of updates but ``none``."""


def codec_of(spec: CodecSpec) -> Codec:
    """Return a codec of updates. Raises: LayoutMismatch for one that only versions have."""
    if (codec := CODECS.get(spec.name)) is None:
        raise LayoutMismatch(f"codec {spec.name} says how versions of the weights differ, and no update is in it")
    return codec


def decoder(reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch | None = None) -> Decoder:
    """Return what decodes that tensor of the layout. The file has passed ``protocol.encoded.check_encoded``.

    ``scratch`` may be shared by decoders that are used one after the other, never by two at once.
    """
    shared = scratch or Scratch()
    if parts_of(spec, codec) is None:
        return PlainDecoder(reader, spec, codec, shared)
    return codec_of(codec).decoder(reader, spec, codec, shared)
