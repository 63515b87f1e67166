"""From a model's tensors to what is stored of them, with error feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from protocol.codecs.reading import TORCH_DTYPES, TensorReader
from protocol.codecs.registry import codec_of, decoder
from protocol.compression import CodecSpec
from protocol.encoded import encoded_metadata, parts_of, stored_tensors
from protocol.errors import LayoutMismatch, NotFinite
from protocol.tensors import Layout, TensorSpec

LARGEST: Final = 2.0**96
"""The largest magnitude that a lossy codec takes: scales and sums of it are still finite."""


def encode(
    tensors: Mapping[str, Tensor], layout: Layout, spec: CodecSpec, residual: dict[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return an update's stored tensors and metadata, ready for ``safetensors.torch.save``.

    ``tensors`` are the layout's parameters and buffers by name, on the CPU, in its shapes. ``residual`` is what earlier
    calls lost ([shape] float32 by parameter; empty at first): it is added before encoding and then holds what this
    call lost, so that decoded + new residual = tensor + old residual. None forgets what is lost.
    Parameters of 64 bits go through float32 in every codec but ``none``.
    Raises: LayoutMismatch if a tensor is missing, has another shape, or has the name of another one's part; NotFinite
        naming the first one with NaN, an infinity or a magnitude over ``LARGEST`` that a lossy codec should take.
        Then ``residual`` is as it was.
    Source: error feedback, Seide et al. 2014 (1-bit SGD); Karimireddy et al., arXiv:1901.09847.
    """
    stored_tensors(layout, spec)  # which refuses names that clash
    for each in layout.returned:
        _check(tensors, each, lossy=parts_of(each, spec) is not None)
    stored: dict[str, Tensor] = {}
    for each in layout.returned:
        given = tensors[each.name].detach()
        if parts_of(each, spec) is None:
            stored[each.name] = given.to(TORCH_DTYPES[each.dtype]).contiguous()
        else:
            stored |= _encoded(given, each, spec, residual)
    return stored, encoded_metadata(spec)


def _check(tensors: Mapping[str, Tensor], spec: TensorSpec, *, lossy: bool) -> None:
    tensor = tensors.get(spec.name)
    if tensor is None:
        raise LayoutMismatch(f"the update lacks {spec.name!r}: return every parameter and buffer")
    if tuple(tensor.shape) != spec.shape:
        raise LayoutMismatch(f"tensor {spec.name!r} is {list(tensor.shape)}; the layout says {list(spec.shape)}")
    if lossy:
        low, high = torch.aminmax(tensor)
        if not (low.item() >= -LARGEST and high.item() <= LARGEST):
            raise NotFinite(f"parameter {spec.name!r} has NaN, an infinity or a magnitude over {LARGEST:.0e}")


def _encoded(
    tensor: Tensor, spec: TensorSpec, codec: CodecSpec, residual: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    values = tensor.reshape(-1).to(torch.float32, copy=True)
    if residual is not None and spec.name in residual:
        values += residual[spec.name].reshape(-1)
    parts = codec_of(codec).encode(values.view(spec.shape), codec)
    stored = {f"{spec.name}/{short}": part for short, part in parts.items()}
    if residual is not None:
        decoder(TensorReader(stored), spec, codec).add_to(values, -1.0)
        residual[spec.name] = values.reshape(spec.shape)
    return stored
