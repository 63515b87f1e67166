"""What an encoded tensor file must look like, checked from its header alone and without a tensor library.

An update in the codec ``none`` is the plain file of ``protocol.tensors`` (``aifarm-update-1``). In any other codec it
has the format ``aifarm-update-2`` and its codec in the metadata, and each float parameter of the layout is stored as
its *parts*, tensors called ``<name>/<part>`` whose dtypes and shapes follow from the layout and the codec. Buffers, and
parameters that the codec would not make smaller, are stored as they are, under their own name.
docs/reference/codecs.md says what the parts hold; ``protocol.codecs`` reads and writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from pydantic import TypeAdapter, ValidationError

from protocol.compression import OF_VERSIONS, CodecName, CodecSpec
from protocol.errors import LayoutMismatch
from protocol.tensors import DTYPE_BYTES, UPDATE_METADATA, Header, Layout, Role, TensorSpec, check_update

ENCODED_FORMAT: Final = "aifarm-update-2"
CHUNK: Final = 4096
"""sparseloco, demo: elements of a chunk."""
SEGMENT: Final = 65536
"""topk: elements of a segment, which sixteen bits can count."""
XOR: Final = "xor"
"""pulse: the one part."""
_DECODED_BY: Final = ("name", "block", "density", "rank")
"""The settings that a reader needs; the others only concern the writer."""
_UNTOUCHED: Final = "untouched"
_NAMES: Final = TypeAdapter(tuple[str, ...])
_ENTRY_BYTES: Final = 256
"""More than one entry of a header takes besides its name: dtype, shape, offsets."""
_SPARE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One stored tensor: a safetensors dtype and a shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Count the elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Count the bytes of its data."""
        return self.elements * DTYPE_BYTES[self.dtype]


def encoded_metadata(codec: CodecSpec) -> dict[str, str]:
    """Return the ``__metadata__`` of a file in that codec."""
    if codec.name is CodecName.NONE:
        return dict(UPDATE_METADATA)
    return {"format": ENCODED_FORMAT, "codec": codec.model_dump_json()}


def untouched_metadata(names: Collection[str]) -> dict[str, str]:
    """Return what ``__metadata__`` says besides where parameters got no gradient at all."""
    return {_UNTOUCHED: json.dumps(sorted(names))} if names else {}


def untouched_in(layout: Layout, header: Header) -> frozenset[str]:
    """Return the parameters that the update calls untouched: no loss of its samples depends on them.

    Raises: LayoutMismatch if it is no JSON list, or names something else than a parameter.
    """
    text = header.metadata.get(_UNTOUCHED)
    if text is None:
        return frozenset()
    try:
        names = frozenset(_NAMES.validate_json(text))
    except ValidationError as error:
        raise LayoutMismatch(f"the update's metadata {_UNTOUCHED!r} is no JSON list of names") from error
    if unknown := sorted(names - {spec.name for spec in layout.parameters}):
        raise LayoutMismatch(f"the update calls {unknown[0]!r} untouched, which is no parameter of the layout")
    return names


def lacking_in(layout: Layout, codec: CodecSpec, header: Header) -> frozenset[str]:
    """Return the parameters that an update calls untouched and has nothing of.

    Raises: as ``untouched_in``.
    """
    untouched = untouched_in(layout, header)
    if not untouched:
        return untouched
    specs = (spec for spec in layout.parameters if spec.name in untouched)
    return frozenset(spec.name for spec in specs if not any(name in header.tensors for name in _names_of(spec, codec)))


def without(layout: Layout, names: Collection[str]) -> Layout:
    """Return a layout without these tensors."""
    return (
        replace(layout, tensors=tuple(spec for spec in layout.tensors if spec.name not in names)) if names else layout
    )


def _names_of(spec: TensorSpec, codec: CodecSpec) -> Iterable[str]:
    parts = parts_of(spec, codec)
    return (spec.name,) if parts is None else (f"{spec.name}/{short}" for short in parts)


def parts_of(spec: TensorSpec, codec: CodecSpec) -> Mapping[str, StoredPart] | None:
    """Return the parts that the tensor is stored as, by their short names, or None if it is stored as it is."""
    if spec.role is not Role.PARAMETER or codec.name not in _PARTS or not spec.elements:
        return None
    parts = _PARTS[codec.name](spec, codec)
    if codec.name in OF_VERSIONS:
        return parts  # no smaller until zstd has seen how much of it is zeros
    return parts if parts and sum(part.size_bytes for part in parts.values()) < spec.size_bytes else None


def stored_tensors(layout: Layout, codec: CodecSpec) -> dict[str, StoredPart]:
    """Return every tensor of an update file in that codec, by its name in the file.

    Raises: LayoutMismatch if a tensor of the layout has the name of another one's part.
    """
    stored: dict[str, StoredPart] = {}
    for spec in layout.returned:
        parts = parts_of(spec, codec)
        named = (
            {spec.name: StoredPart(spec.dtype, spec.shape)}
            if parts is None
            else {f"{spec.name}/{short}": part for short, part in parts.items()}
        )
        if clash := sorted(named.keys() & stored.keys()):
            raise LayoutMismatch(f"tensor {clash[0]!r} has the name of an encoded part: rename it, or use codec none")
        stored |= named
    return stored


def check_encoded(layout: Layout, codec: CodecSpec, header: Header, lacking: Collection[str] = frozenset()) -> None:
    """Check that an update in that codec has exactly the stored tensors that the layout needs, without the ``lacking``.

    Raises: LayoutMismatch naming the codecs, the tensor and both shapes or dtypes, or the missing or extra names; and
        as ``untouched_in`` does.
    """
    untouched_in(layout, header)
    layout = without(layout, lacking)
    if codec.name is CodecName.NONE:
        check_update(layout, header)
        return
    _check_codec(codec, header)
    expected = stored_tensors(layout, codec)
    if missing := sorted(expected.keys() - header.tensors.keys()):
        raise LayoutMismatch(f"the update lacks {missing[0]!r}, which codec {codec.name} needs for this layout")
    if extra := sorted(header.tensors.keys() - expected.keys()):
        raise LayoutMismatch(f"the update has {extra[0]!r}, which codec {codec.name} does not need for this layout")
    for name, part in expected.items():
        got = header.tensors[name]
        if (got.dtype, got.shape) != (part.dtype, part.shape):
            raise LayoutMismatch(
                f"tensor {name!r} is {got.dtype} {list(got.shape)} in the update, and codec {codec.name} makes it "
                f"{part.dtype} {list(part.shape)} for this layout"
            )


def largest_bytes(layout: Layout, codec: CodecSpec) -> int:
    """Return the most bytes that an update in that codec may have (before zstd), header and all."""
    stored = stored_tensors(layout, codec)
    entries = sum(len(json.dumps(name)) + _ENTRY_BYTES + 24 * len(part.shape) for name, part in stored.items())
    entries += len(json.dumps(json.dumps([spec.name for spec in layout.parameters])))
    return entries + _SPARE_BYTES + sum(part.size_bytes for part in stored.values())


def kept(elements: int, density: float) -> int:
    """Return how many of so many elements a sparse codec keeps: at least one, and never all but by density 1."""
    return min(elements, max(1, math.floor(elements * density + 0.5)))


def count_chunks(elements: int, size: int) -> int:
    """Return into how many chunks of that size the elements go; the last one may be shorter."""
    return -(-elements // size)


def _check_codec(codec: CodecSpec, header: Header) -> None:
    if header.metadata.get("format") != ENCODED_FORMAT:
        raise LayoutMismatch(f"the update's format is not {ENCODED_FORMAT!r}: the task asks for codec {codec.name}")
    try:
        used = CodecSpec.model_validate_json(header.metadata.get("codec", ""))
    except ValidationError as error:
        raise LayoutMismatch(f"the update does not say its codec; the task asks for {codec.name}") from error
    if any(getattr(used, setting) != getattr(codec, setting) for setting in _DECODED_BY):
        raise LayoutMismatch(f"the update is in codec {_described(used)}, and the task asks for {_described(codec)}")


def _described(codec: CodecSpec) -> str:
    return f"{codec.name} (block {codec.block}, density {codec.density:g}, rank {codec.rank})"


def _sixteen_bits(dtype: str) -> Callable[[TensorSpec, CodecSpec], dict[str, StoredPart]]:
    return lambda spec, _codec: {dtype.lower(): StoredPart(dtype, (spec.elements,))}


def _int8(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    return {"q": StoredPart("I8", (spec.elements,)), "scale": _scales(spec, codec)}


def _int4(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    return {"q": packed(spec.elements, 4), "scale": _scales(spec, codec)}


def _sign(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    return {"sign": packed(spec.elements, 1), "scale": _scales(spec, codec)}


def _topk(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    count = kept(spec.elements, codec.density)
    segments = StoredPart("I32", (count_chunks(spec.elements, SEGMENT),))
    return {"value": StoredPart("F32", (count,)), "index": StoredPart("I16", (count,)), "count": segments}


def _sparseloco(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    chunks, count = count_chunks(spec.elements, CHUNK), kept(CHUNK, codec.density)
    return {
        **_chunk_indices(chunks * count),
        "level": packed(chunks * count, 2),
        "scale": StoredPart("BF16", (chunks, 2)),
    }


def _demo(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    chunks, count = count_chunks(spec.elements, CHUNK), kept(CHUNK, codec.density)
    return {**_chunk_indices(chunks * count), "value": StoredPart("BF16", (chunks, count))}


def _powersgd(spec: TensorSpec, codec: CodecSpec) -> dict[str, StoredPart]:
    if len(spec.shape) < 2:
        return {}
    rows, columns = spec.shape[0], spec.elements // spec.shape[0]
    rank = min(codec.rank, rows, columns)
    return {"p": StoredPart("F32", (rows, rank)), "q": StoredPart("F32", (columns, rank))}


def _pulse(spec: TensorSpec, _codec: CodecSpec) -> dict[str, StoredPart]:
    return {XOR: StoredPart("U8", (DTYPE_BYTES[spec.dtype], spec.elements))}


def packed(fields: int, bits: int) -> StoredPart:
    """Return the part that so many fields of 1, 2 or 4 bits are packed into."""
    return StoredPart("U8", (count_chunks(fields * bits, 8),))


def _scales(spec: TensorSpec, codec: CodecSpec) -> StoredPart:
    return StoredPart("F32", (count_chunks(spec.elements, codec.block),))


def _chunk_indices(count: int) -> dict[str, StoredPart]:
    """Twelve bits each: the low eight as bytes, the high four packed."""
    return {"index": StoredPart("U8", (count,)), "high": packed(count, 4)}


_PARTS: Final[Mapping[CodecName, Callable[[TensorSpec, CodecSpec], dict[str, StoredPart]]]] = MappingProxyType(
    {
        CodecName.FP16: _sixteen_bits("F16"),
        CodecName.BF16: _sixteen_bits("BF16"),
        CodecName.INT8: _int8,
        CodecName.INT4: _int4,
        CodecName.SIGN: _sign,
        CodecName.TOPK: _topk,
        CodecName.SPARSELOCO: _sparseloco,
        CodecName.DEMO: _demo,
        CodecName.POWERSGD: _powersgd,
        CodecName.PULSE: _pulse,
    }
)
