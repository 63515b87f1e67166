"""Where stored tensors come from: a file's bytes in memory, live tensors, or whatever reads ranges of a file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol, cast

import torch
from torch import Tensor

from protocol.tensors import Header, TensorBytes, read_header

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""torch's name of each dtype of ``protocol.tensors``."""
_NOTHING: Final = torch.empty(0)
_WIRE_DTYPES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# torch says once in a process that a tensor over read-only bytes must not be written to. No code here writes to one.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


class Reader(Protocol):
    """A tensor file whose data is read range by range."""

    @property
    def header(self) -> Header:
        """The file's header, checked against the layout."""

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes of that stored tensor from ``start_byte`` (counted within it) on."""


class MappedReader(Reader, Protocol):
    """A reader whose data lies in memory (a memory-map counts): decoding then copies nothing, which is faster."""

    def view(self, name: str) -> memoryview | None:
        """Return the bytes of that stored tensor as they lie in memory, or None: read it. They must not change."""


class BytesReader:
    """A tensor file in memory: ``bytes``, or a ``memoryview`` of a memory-map.

    Raises: MalformedTensors as ``protocol.tensors.read_header`` does, unless the header is given.
    """

    def __init__(self, data: bytes | bytearray | memoryview, header: Header | None = None) -> None:
        self._data = memoryview(data)
        self.header = header or read_header(self._data)

    def view(self, name: str) -> memoryview:
        """Return the bytes of that stored tensor."""
        place = self.header.tensors[name]
        return self._data[place.start : place.stop]

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        """Copy bytes of that stored tensor."""
        buffer[:] = self.view(name)[start_byte : start_byte + len(buffer)]


class TensorReader:
    """Tensors in memory, read as the file that they would be saved as (with another order of the data)."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self._tensors = tensors
        self.header = _header_of(tensors, metadata or {})

    def view(self, name: str) -> memoryview:
        """Return the tensor's memory."""
        flat = self._tensors[name].detach().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data  # as bytes: numpy knows no bfloat16

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        """Copy bytes of that tensor."""
        buffer[:] = self.view(name)[start_byte : start_byte + len(buffer)]


class Scratch:
    """Memory that is used again from chunk to chunk and from tensor to tensor. For one thread."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, purpose: str, elements: int, dtype: torch.dtype) -> Tensor:
        """Return ``elements`` uninitialized elements; those given for the same purpose and dtype before are reused."""
        known = self._tensors.get((purpose, dtype))
        if known is None or known.numel() < elements:
            known = self._tensors[purpose, dtype] = torch.empty(elements, dtype=dtype)
        return known[:elements]


class Elements:
    """The elements of one stored tensor in flat order, by ranges: as they lie in memory, or read into scratch.

    ``name`` is what it is stored as: a ``part`` of a tensor of the layout, or (``part`` empty) that tensor itself.
    Scratch is shared by the same parts of all tensors.
    """

    def __init__(self, reader: Reader, tensor: str, part: str, scratch: Scratch) -> None:
        self.name = f"{tensor}/{part}" if part else tensor
        self._reader = reader
        self._purpose = f"stored {part}"
        self._scratch = scratch
        entry = reader.header.tensors[self.name]
        self._buffer = _NOTHING
        self._bytes = memoryview(b"")
        self.dtype = TORCH_DTYPES[entry.dtype]
        self.count = math.prod(entry.shape)
        self._mapped = _mapped(reader, self.name, self.dtype) if entry.stop > entry.start else None

    def read(self, start: int, stop: int) -> Tensor:
        """Return elements ``start`` to ``stop``, to be read only, and only until the next call."""
        if self._mapped is not None:
            return self._mapped[start:stop]
        count, size = stop - start, self.dtype.itemsize
        if count > self._buffer.numel():
            self._buffer = self._scratch.take(self._purpose, count, self.dtype)
            self._bytes = self._buffer.view(torch.uint8).numpy().data
        self._reader.read_into(self.name, start * size, self._bytes[: count * size])
        return self._buffer[:count]


def _mapped(reader: Reader, name: str, dtype: torch.dtype) -> Tensor | None:
    if not hasattr(reader, "view"):  # isinstance of a protocol takes 20 microseconds, for each tensor of each update
        return None
    if (data := cast("MappedReader", reader).view(name)) is None:
        return None
    elements = torch.frombuffer(data, dtype=dtype)
    # A stranger's file need not be padded, and torch may assume that elements start at multiples of their size.
    return elements if elements.data_ptr() % dtype.itemsize == 0 else None


def _header_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Header:
    entries: dict[str, TensorBytes] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = TensorBytes(_WIRE_DTYPES[tensor.dtype], tuple(tensor.shape), start, end)
    return Header(MappingProxyType(entries), MappingProxyType(dict(metadata)), end)
