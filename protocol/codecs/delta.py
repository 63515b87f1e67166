"""From one version of the weights to the next, by an encoded difference; the same bits on server and clients."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.decoder import chunks_of
from protocol.codecs.pulse import apply_bits
from protocol.codecs.reading import Reader, Scratch
from protocol.codecs.registry import decoder
from protocol.compression import OF_VERSIONS, CodecSpec
from protocol.encoded import parts_of
from protocol.tensors import Layout, Role


def apply_delta(weights: dict[str, Tensor], reader: Reader, layout: Layout, codec: CodecSpec) -> None:
    """Add a decoded delta to the parameters in place, or change their bits by it, and replace the buffers.

    ``weights`` are writable, contiguous, in the layout's shapes and dtypes; the file has been checked against the
    layout. A sum is rounded once to float32 (float64 for float64 parameters), and 16-bit parameters once more, so
    that the result has the same bits on every machine.
    """
    scratch = Scratch()
    for spec in layout.returned:
        if codec.name in OF_VERSIONS and parts_of(spec, codec) is not None:
            apply_bits(weights[spec.name], reader, spec, scratch)
            continue
        each = decoder(reader, spec, codec, scratch)
        flat = weights[spec.name].view(-1)
        for start, stop in chunks_of(spec.elements):
            values = scratch.take("delta", stop - start, each.dtype)
            each.read(start, values)
            if spec.role is Role.PARAMETER:
                _add(flat[start:stop], values, scratch)
            else:
                flat[start:stop].copy_(values)


def _add(weights: Tensor, values: Tensor, scratch: Scratch) -> None:
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    total = scratch.take("sum", weights.numel(), wide).copy_(weights)
    weights.copy_(total.add_(scratch.take("wide delta", weights.numel(), wide).copy_(values)))
