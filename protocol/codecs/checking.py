"""What a header cannot show of an untrusted file: whether its numbers can be summed, its indices are in order."""

from __future__ import annotations

import math
import sys
from typing import Final, NamedTuple

import torch
from torch import Tensor

from protocol.codecs.chunk_indices import ChunkIndices
from protocol.codecs.decoder import CHUNK_ELEMENTS, chunks_of
from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.codecs.topk import SegmentIndices
from protocol.compression import CodecName, CodecSpec
from protocol.encoded import CHUNK, SEGMENT, count_chunks, kept, parts_of
from protocol.errors import MalformedTensors
from protocol.tensors import Layout, Role, TensorSpec

_LARGEST_PART: Final = 2.0**112
"""No encoder writes more than this, and no sum or product in a decoder makes an infinity of it."""
_LARGEST_FACTOR: Final = 2.0
"""powersgd's p has columns of length 1."""
_HEADROOM: Final = 2.0**12
"""So much smaller than the largest sum must each update be: momentum and learning rates multiply the mean."""


class BadNumbers(NamedTuple):
    """A stored tensor that can't be used: by NaN or an infinity, or (``finite``) by a number that is far too large."""

    tensor: str
    finite: bool


def bad_numbers(reader: Reader, layout: Layout, codec: CodecSpec, samples: int = 1) -> BadNumbers | None:
    """Return the first stored tensor with NaN, an infinity, or a number too large to be summed, or None.

    ``samples``: how many a round has; with each weighing one, no sum of updates that pass overflows, so that whoever
    sent what is too large is found before its update spoils the others'. Buffers are averaged without a sum.
    The header has passed ``protocol.encoded.check_encoded``. One pass over what is stored, in chunks.
    Raises: MalformedTensors naming the tensor whose indices are out of range, out of order, or twice the same.
    """
    scratch = Scratch()
    for spec in layout.returned:
        parts = parts_of(spec, codec)
        for part in [""] if parts is None else parts:
            stored = Elements(reader, spec.name, part, scratch)
            limit = _LARGEST_FACTOR if part == "p" else _largest(spec, part, samples)
            if (extreme := _beyond(stored, limit)) is not None:
                return BadNumbers(stored.name, math.isfinite(extreme))
        if parts is not None and codec.name in _CHECKS:
            _CHECKS[codec.name](reader, spec, codec, scratch)
    return None


def _largest(spec: TensorSpec, part: str, samples: int) -> float:
    if spec.role is Role.BUFFER:
        return sys.float_info.max
    if part:
        return _LARGEST_PART / samples
    largest_sum = torch.finfo(torch.float64 if spec.dtype == "F64" else torch.float32).max
    return largest_sum / (_HEADROOM * samples)


def _beyond(stored: Elements, limit: float) -> float | None:
    """Return a number whose magnitude is over ``limit``, or NaN; None if there is none."""
    if not stored.dtype.is_floating_point:
        return None
    for start, stop in chunks_of(stored.count):
        low, high = (bound.item() for bound in torch.aminmax(stored.read(start, stop)))  # NaN where any element is
        if not (low >= -limit and high <= limit):
            return float(high if not high <= limit else low)
    return None


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
