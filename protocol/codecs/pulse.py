"""pulse: the bits in which two versions of the weights differ; lossless, for versions alone. After arXiv:2602.03839.

Small learning rates leave most 16-bit weights as they were (Miahi & Belilovsky measured 99 % of a step's): their bits
differ in nothing. Stored is the exclusive or of both versions' bits, the bytes of equal significance together, so that
what did not change is a run of zeros for zstd. The paper stores indices and values instead, which takes about half of
the bytes where 1 % changed; this needs no size that depends on the data, and nothing in it can be out of range.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from protocol.codecs.decoder import chunks_of
from protocol.codecs.reading import TORCH_DTYPES, Elements, Reader, Scratch
from protocol.compression import CodecSpec
from protocol.encoded import XOR, encoded_metadata, parts_of
from protocol.tensors import Layout, TensorSpec


def encode_bits(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], layout: Layout, codec: CodecSpec
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the stored tensors and metadata that lead from one version of the parameters to another.

    Both are by name, on the CPU, contiguous, in the layout's shapes and dtypes; ``after`` has the buffers too.
    """
    stored: dict[str, Tensor] = {}
    for spec in layout.returned:
        if parts_of(spec, codec) is None:
            stored[spec.name] = after[spec.name].to(TORCH_DTYPES[spec.dtype]).contiguous()
        else:
            changed = _bytes_of(before[spec.name]).bitwise_xor(_bytes_of(after[spec.name]))
            stored[f"{spec.name}/{XOR}"] = changed.T.contiguous()
    return stored, encoded_metadata(codec)


def apply_bits(weights: Tensor, reader: Reader, spec: TensorSpec, scratch: Scratch) -> None:
    """Change the bits of one parameter, contiguous and writable, by those that a file holds; chunk by chunk."""
    stored, values = Elements(reader, spec.name, XOR, scratch), _bytes_of(weights)
    for plane in range(values.shape[1]):
        first = plane * spec.elements
        for start, stop in chunks_of(spec.elements):
            values[start:stop, plane].bitwise_xor_(stored.read(first + start, first + stop))


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return the tensor's own memory as [elements, bytes of one]."""
    return tensor.detach().reshape(-1).view(torch.uint8).view(-1, tensor.element_size())
