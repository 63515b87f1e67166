"""The next version of the weights, written from an older one and differences; no task's code has a part in it."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from farm_client.executor.layout import TensorMap
from farm_client.executor.messages import Difference
from protocol.codecs import TORCH_DTYPES, BytesReader, apply_delta
from protocol.encoded import check_encoded, largest_bytes
from protocol.errors import MalformedTensors
from protocol.tensors import Header, Layout, TensorBytes, parse_layout, read_header
from protocol.zstd import unwrap_bytes


def rebase(base: Path, differences: Sequence[Difference], made: Path) -> None:
    """Write to ``made`` the weights file that follows from ``base`` by the differences, one after the other.

    A copy is changed in place, through a memory-map: it has the base's header byte for byte, so that equal weights are
    equal files, and a model larger than the memory has room.

    Raises: MalformedTensors, LayoutMismatch for a file that is not what it should be; OSError.
    """
    shutil.copyfile(base, made)
    with made.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)  # closed when the last tensor over it is gone
    header = read_header(memoryview(memory))
    layout, weights = parse_layout(header), _tensors_over(memory, header)
    for difference in differences:
        _apply(difference, weights, layout)


def _apply(difference: Difference, weights: TensorMap, layout: Layout) -> None:
    data = Path(difference.path).read_bytes() if difference.path is not None else difference.data or b""
    reader = BytesReader(unwrap_bytes(data, largest_bytes(layout, difference.codec)))
    check_encoded(layout, difference.codec, reader.header)
    apply_delta(weights, reader, layout, difference.codec)


def _tensors_over(memory: mmap.mmap, header: Header) -> TensorMap:
    return {name: _tensor_over(memory, place) for name, place in header.tensors.items()}


def _tensor_over(memory: mmap.mmap, place: TensorBytes) -> torch.Tensor:
    """Return a tensor that lies in the file: what is written to it is written to the file."""
    dtype = TORCH_DTYPES[place.dtype]
    if place.start == place.stop:
        return torch.empty(place.shape, dtype=dtype)
    if place.start % dtype.itemsize:
        raise MalformedTensors(f"the weights file has {place.dtype} at byte {place.start}, where torch cannot use it")
    elements = (place.stop - place.start) // dtype.itemsize
    return torch.frombuffer(memory, dtype=dtype, count=elements, offset=place.start).view(place.shape)
