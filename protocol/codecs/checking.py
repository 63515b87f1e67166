"""What a header cannot tell about a stranger's file: whether its numbers are finite and its indices in order."""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from protocol.codecs.chunk_indices import ChunkIndices
from protocol.codecs.decoder import CHUNK_ELEMENTS, chunks_of
from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.codecs.topk import SegmentIndices
from protocol.compression import CodecName, CodecSpec
from protocol.encoded import CHUNK, SEGMENT, count_chunks, kept, parts_of
from protocol.errors import MalformedTensors
from protocol.tensors import Layout, TensorSpec

_LARGEST_PART: Final = 2.0**112
"""No encoder writes more than this, and no sum or product in a decoder makes an infinity of it."""
_LARGEST: Final = MappingProxyType({"": sys.float_info.max, "p": 2.0})
"""Of what is stored as it is, anything finite; powersgd's p has columns of length 1."""


def non_finite(reader: Reader, layout: Layout, codec: CodecSpec) -> str | None:
    """Return the name of the first stored tensor with NaN, an infinity or a number no encoder writes, or None.

    The header has passed ``protocol.encoded.check_encoded``. One pass over what is stored, in chunks.
    Raises: MalformedTensors naming the tensor whose indices are out of range, out of order, or twice the same.
    """
    scratch = Scratch()
    for spec in layout.returned:
        parts = parts_of(spec, codec)
        for part in [""] if parts is None else parts:
            stored = Elements(reader, spec.name, part, scratch)
            if not _is_within(stored, _LARGEST.get(part, _LARGEST_PART)):
                return stored.name
        if parts is not None and codec.name in _CHECKS:
            _CHECKS[codec.name](reader, spec, codec, scratch)
    return None


def _is_within(stored: Elements, limit: float) -> bool:
    """Whether no magnitude is over ``limit``."""
    if not stored.dtype.is_floating_point:
        return True
    for start, stop in chunks_of(stored.count):
        low, high = torch.aminmax(stored.read(start, stop))  # NaN where any element is
        if not (low.item() >= -limit and high.item() <= limit):
            return False
    return True


def _check_topk(reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
    indices = SegmentIndices(reader, spec, scratch)
    low, high = torch.aminmax(indices.counts)
    if low < 0 or high > SEGMENT or indices.total != kept(spec.elements, codec.density):
        raise MalformedTensors(f"the counts of {spec.name!r} do not add up to its number of values")
    for first, last in chunks_of(indices.counts.numel(), CHUNK_ELEMENTS // SEGMENT):
        _, positions = indices.read(first, last)
        _check_ascending(spec, positions, min(spec.elements, last * SEGMENT))


def _check_chunks(reader: Reader, spec: TensorSpec, codec: CodecSpec, scratch: Scratch) -> None:
    indices = ChunkIndices(reader, spec, codec, scratch)
    for first, last in chunks_of(count_chunks(spec.elements, CHUNK), CHUNK_ELEMENTS // CHUNK):
        _check_ascending(spec, indices.read(first, last), last * CHUNK)


def _check_ascending(spec: TensorSpec, positions: Tensor, elements: int) -> None:
    if positions.numel() and not (bool((positions.diff() > 0).all()) and int(positions[-1]) < elements):
        raise MalformedTensors(f"the indices of {spec.name!r} are not in ascending order, or one is out of range")


_CHECKS: Final = {
    CodecName.TOPK: _check_topk,
    CodecName.SPARSELOCO: _check_chunks,
    CodecName.DEMO: _check_chunks,
}
