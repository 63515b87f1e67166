"""What a header cannot tell about a stranger's file: whether its numbers are finite and its indices in order."""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.decoder import chunks_of
from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.compression import CodecSpec
from protocol.encoded import stored_tensors
from protocol.tensors import Layout


def non_finite(reader: Reader, layout: Layout, codec: CodecSpec) -> str | None:
    """Return the name of the first stored tensor with NaN or an infinity, or None. The header has been checked."""
    scratch = Scratch()
    for name, part in stored_tensors(layout, codec).items():
        stored = Elements(reader, name, scratch)
        if stored.dtype.is_floating_point and not all(
            _is_finite(stored.read(start, stop)) for start, stop in chunks_of(part.elements)
        ):
            return name
    return None


def _is_finite(values: Tensor) -> bool:
    # Minimum and maximum are finite exactly when all elements are; NaN is passed on.
    low, high = torch.aminmax(values)
    return bool(low.isfinite() and high.isfinite())
