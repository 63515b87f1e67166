"""What a tensor file must look like, checked from its header alone and without a tensor library.

Tensor files are safetensors: 8 bytes little-endian header length, a JSON header, then the data without a hole.
A *weights file* (format ``aifarm-weights-1``) also says in its metadata what each tensor is for, so that it defines
its task's layout; an *update file* (``aifarm-update-1``) must match that layout. The safetensors package reads and
writes the data; it cannot read a header from a file's leading bytes, nor the metadata, so this module does.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from protocol.bounds import Bytes, Count
from protocol.errors import LayoutMismatch, MalformedTensors

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
"""Room for about 100,000 tensors."""
HEADER_LENGTH_BYTES: Final = 8
WEIGHTS_FORMAT: Final = "aifarm-weights-1"
UPDATE_FORMAT: Final = "aifarm-update-1"
UPDATE_METADATA: Final[Mapping[str, str]] = MappingProxyType({"format": UPDATE_FORMAT})
"""The ``__metadata__`` of an update file."""
DTYPE_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
)
"""Every dtype that may cross the wire, with the bytes of one element."""
FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})

_LENGTH: Final = struct.Struct("<Q")


class Role(StrEnum):
    """What a tensor is for."""

    PARAMETER = "parameter"
    """Trained: clients return its gradient or pseudo-gradient. A float."""
    BUFFER = "buffer"
    """State that training changes besides (running statistics, counters): clients return its value."""
    FROZEN = "frozen"
    """Never changes and is never returned."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a task's model. ``dtype`` is a safetensors name (a key of ``DTYPE_BYTES``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role = Role.PARAMETER

    @property
    def elements(self) -> int:
        """Count the elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Count the bytes of its data."""
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def is_float(self) -> bool:
        """Whether it is averaged rather than compared."""
        return self.dtype in FLOATS


@dataclass(frozen=True, slots=True)
class Layout:
    """A task's tensors, sorted by name. ``tied``: names of the model that share another tensor's data."""

    tensors: tuple[TensorSpec, ...]
    tied: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[TensorSpec, ...]:
        """Return what the outer optimizer updates."""
        return tuple(t for t in self.tensors if t.role is Role.PARAMETER)

    @property
    def returned(self) -> tuple[TensorSpec, ...]:
        """Return what an update holds: parameters and buffers."""
        return tuple(t for t in self.tensors if t.role is not Role.FROZEN)


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """Where one tensor's data is: bytes ``start`` to ``stop`` counted from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """A tensor file's header, checked. ``total_bytes`` is the size of the whole file."""

    tensors: Mapping[str, TensorBytes]
    metadata: Mapping[str, str]
    total_bytes: int


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    dtype: str
    shape: list[Count] = Field(max_length=64)
    data_offsets: Annotated[list[Bytes], Field(min_length=2, max_length=2)]


_T = TypeVar("_T")
_ENTRIES: Final = TypeAdapter(dict[str, _Entry])
_TEXTS: Final = TypeAdapter(dict[str, str])
_ROLES: Final = TypeAdapter(dict[str, Role])


def weights_metadata(roles: Mapping[str, Role], tied: Mapping[str, str]) -> dict[str, str]:
    """Return the ``__metadata__`` of a weights file; names without a role are parameters."""
    special = {name: str(role) for name, role in sorted(roles.items()) if role is not Role.PARAMETER}
    return {"format": WEIGHTS_FORMAT, "roles": json.dumps(special), "tied": json.dumps(dict(sorted(tied.items())))}


def read_header(data: bytes | bytearray | memoryview, total_bytes: int | None = None) -> Header:
    """Read and check a tensor file's header.

    ``data`` is the whole file, or its leading bytes (at least the header) when ``total_bytes`` gives the file's size.
    Raises: MalformedTensors if the file is cut, has a hole, an overlap or bytes left over, a header that is no JSON
        or over ``MAX_HEADER_BYTES``, an unknown dtype, or a tensor whose shape and byte count disagree.
    """
    view = memoryview(data)
    total = len(view) if total_bytes is None else total_bytes
    data_start = _data_start(view)
    if total < data_start or len(view) < data_start:
        raise MalformedTensors(f"the tensor file is cut: its header needs {data_start} bytes and {len(view)} came")
    document = _parse_json(bytes(view[HEADER_LENGTH_BYTES:data_start]))
    metadata = _checked(_TEXTS, document.pop("__metadata__", {}), "__metadata__")
    tensors = {
        name: _located(name, entry, data_start) for name, entry in _checked(_ENTRIES, document, "header").items()
    }
    _check_gapless(tensors, data_start, total)
    return Header(MappingProxyType(tensors), MappingProxyType(metadata), total)


def parse_layout(source: Header | bytes | bytearray | memoryview) -> Layout:
    """Return the layout that a weights file defines.

    Raises: MalformedTensors as ``read_header`` does, and if the metadata is not that of a weights file, names a
        tensor that is not there, or leaves a tensor of integers to be a parameter.
    """
    header = source if isinstance(source, Header) else read_header(source)
    if header.metadata.get("format") != WEIGHTS_FORMAT:
        raise MalformedTensors(f"this is no weights file: its metadata lacks format {WEIGHTS_FORMAT!r}")
    roles = _metadata_json(header, "roles", _ROLES)
    tied = _metadata_json(header, "tied", _TEXTS)
    _check_names(header, roles, tied)
    specs = tuple(
        TensorSpec(name, entry.dtype, entry.shape, roles.get(name, Role.PARAMETER))
        for name, entry in sorted(header.tensors.items())
    )
    for spec in specs:
        if spec.role is Role.PARAMETER and not spec.is_float:
            raise MalformedTensors(f"parameter {spec.name!r} is {spec.dtype}: give it the role buffer or frozen")
    return Layout(specs, MappingProxyType(tied))


def joined_layout(layout: Layout, frozen: Layout) -> Layout:
    """Return the layout of a whole model, whose frozen tensors are in a file of their own.

    Raises: LayoutMismatch if that has a tensor that is not frozen, or one that the other has too.
    """
    if changing := [spec.name for spec in frozen.tensors if spec.role is not Role.FROZEN]:
        raise LayoutMismatch(f"the file of frozen tensors has {_some(changing)}, which it does not call frozen")
    names = {spec.name for spec in layout.tensors} | layout.tied.keys()
    if twice := sorted(names & ({spec.name for spec in frozen.tensors} | frozen.tied.keys())):
        raise LayoutMismatch(f"{_some(twice)} is among the frozen tensors and in the weights as well")
    tensors = tuple(sorted((*layout.tensors, *frozen.tensors), key=lambda spec: spec.name))
    return Layout(tensors, MappingProxyType({**layout.tied, **frozen.tied}))


def check_update(layout: Layout, header: Header) -> None:
    """Check that an update has every parameter and buffer of the layout, as they are there, and nothing else.

    Raises: LayoutMismatch naming the tensor and both shapes or dtypes, or the missing or extra names.
    """
    if header.metadata.get("format") != UPDATE_FORMAT:
        raise LayoutMismatch(f"this is no update file: its metadata lacks format {UPDATE_FORMAT!r}")
    expected = {spec.name: spec for spec in layout.returned}
    if missing := sorted(expected.keys() - header.tensors.keys()):
        raise LayoutMismatch(f"the update lacks {_some(missing)}: return every parameter and buffer")
    if extra := sorted(header.tensors.keys() - expected.keys()):
        raise LayoutMismatch(f"the update has {_some(extra)}, which the layout does not (or has as frozen)")
    for name, spec in expected.items():
        got = header.tensors[name]
        if (got.dtype, got.shape) != (spec.dtype, spec.shape):
            raise LayoutMismatch(
                f"tensor {name!r} is {got.dtype} {list(got.shape)} in the update "
                f"and {spec.dtype} {list(spec.shape)} in the task's layout"
            )


def _data_start(view: memoryview) -> int:
    if len(view) < HEADER_LENGTH_BYTES:
        raise MalformedTensors(f"the tensor file is cut: it has {len(view)} bytes and no header")
    (length,) = _LENGTH.unpack_from(view)
    if length > MAX_HEADER_BYTES:
        raise MalformedTensors(f"the tensor file's header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
    return HEADER_LENGTH_BYTES + int(length)


def _parse_json(text: bytes | str) -> dict[str, Any]:
    try:
        document = from_json(text)
    except ValueError as error:
        raise MalformedTensors(f"the tensor file's header is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MalformedTensors("the tensor file's header is not a JSON object")
    return document


def _checked(adapter: TypeAdapter[_T], value: object, where: str) -> _T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(step)[:200] for step in (where, *first["loc"]))
        raise MalformedTensors(f"the tensor file's {path}: {first['msg']}") from error


def _located(name: str, entry: _Entry, data_start: int) -> TensorBytes:
    if entry.dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise MalformedTensors(f"tensor {_some([name])} has dtype {entry.dtype[:20]!r}; known are {known}")
    start, stop = entry.data_offsets
    needed = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
    if stop - start != needed:
        raise MalformedTensors(
            f"tensor {_some([name])} is {entry.dtype} {entry.shape}: {needed} bytes, and has {stop - start}"
        )
    return TensorBytes(entry.dtype, tuple(entry.shape), data_start + start, data_start + stop)


def _check_gapless(tensors: Mapping[str, TensorBytes], data_start: int, total_bytes: int) -> None:
    end = data_start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            what = "overlaps the one before it" if entry.start < end else "leaves a hole before it"
            raise MalformedTensors(f"tensor {_some([name])} {what}: it starts at byte {entry.start}, not {end}")
        end = entry.stop
    if end != total_bytes:
        what = "is cut" if end > total_bytes else "has bytes left over"
        raise MalformedTensors(f"the tensor file {what}: its tensors end at byte {end} of {total_bytes}")


def _metadata_json(header: Header, key: str, adapter: TypeAdapter[_T]) -> _T:
    return _checked(adapter, _parse_json(header.metadata.get(key, "{}")), f"__metadata__.{key}")


def _check_names(header: Header, roles: Mapping[str, Role], tied: Mapping[str, str]) -> None:
    if unknown := sorted((roles.keys() | set(tied.values())) - header.tensors.keys()):
        raise MalformedTensors(f"the weights file's metadata names {_some(unknown)}, which it does not hold")
    if stored := sorted(tied.keys() & header.tensors.keys()):
        raise MalformedTensors(f"{_some(stored)} is tied to another tensor and must not be stored as well")


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:200]) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
