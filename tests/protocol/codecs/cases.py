"""Tensors, codecs and readers that the codecs' tests share."""

from __future__ import annotations

import safetensors.torch
import torch
from hypothesis import strategies as st
from torch import Tensor

from protocol.codecs import TORCH_DTYPES, BytesReader, encode
from protocol.compression import OF_UPDATES, CodecName, CodecSpec
from protocol.tensors import Layout, Role, TensorSpec

LOSSY = [name for name in OF_UPDATES if name is not CodecName.NONE]
SETTINGS = {"block": 48, "density": 1 / 50, "rank": 3}
"""Nothing is a power of two, so that borders lie in all sorts of places."""

codecs = st.builds(
    CodecSpec,
    name=st.sampled_from(LOSSY),
    block=st.integers(16, 300),
    density=st.floats(1e-4, 1),
    rank=st.integers(1, 9),
)
shapes = st.one_of(
    st.lists(st.integers(1, 90), min_size=1, max_size=3).map(tuple),
    st.integers(4000, 9000).map(lambda n: (n,)),
    st.just((70_000,)),
    st.just((3, 30_000)),
)


def codec_of(name: CodecName, **settings: float) -> CodecSpec:
    return CodecSpec(name=name, **(SETTINGS | settings))


def one(shape: tuple[int, ...], dtype: str = "F32") -> Layout:
    """A layout of one parameter ``w``."""
    return Layout((TensorSpec("w", dtype, shape),))


def values(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0, dtype: str = "F32") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(TORCH_DTYPES[dtype])


def mixed() -> tuple[Layout, dict[str, Tensor]]:
    """Tensors of every kind that an update may hold."""
    layout = Layout(
        (
            TensorSpec("big", "F32", (130, 70)),
            TensorSpec("count", "I64", (), Role.BUFFER),
            TensorSpec("empty", "F32", (0, 3)),
            TensorSpec("frozen", "F32", (5,), Role.FROZEN),
            TensorSpec("half", "BF16", (600, 9)),
            TensorSpec("mean", "F32", (700,), Role.BUFFER),
            TensorSpec("tiny", "F32", (1,)),
            TensorSpec("wide", "F64", (4100,)),
        )
    )
    tensors = {spec.name: values(spec.shape, seed, dtype=spec.dtype) for seed, spec in enumerate(layout.returned)}
    return layout, tensors | {"count": torch.tensor(7)}


def file_of(tensors: dict[str, Tensor], layout: Layout, codec: CodecSpec) -> bytes:
    stored, metadata = encode(tensors, layout, codec, None)
    return safetensors.torch.save(stored, metadata)


class RangeReader:
    """A reader that, like one of a file, can only copy ranges."""

    def __init__(self, data: bytes) -> None:
        self._bytes = BytesReader(data)
        self.header = self._bytes.header

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        self._bytes.read_into(name, start_byte, buffer)
