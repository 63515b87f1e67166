"""Maps to msgpack bytes and back, within limits: the layer under the messages and under the executor's frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Never

import msgpack

from protocol.errors import MalformedFrame, OversizedFrame
from protocol.limits import MAX_CONFIG_BYTES

MAX_ITEMS: Final = MAX_CONFIG_BYTES // 2
"""The longest list or map: a config of the largest size, written as JSON, holds no longer one.

Without it, a few bytes that announce a list of 2**32 items would make the decoder reserve the memory for it.
Nesting is bounded by msgpack itself (1023 levels).
"""


def pack_map(obj: Mapping[str, Any]) -> bytes:
    """Return ``obj`` as msgpack; bytes stay bytes, tuples become lists, enums their values.

    Raises: MalformedFrame if a value has no msgpack form (a date, an integer over 64 bits, a lone surrogate).
    """
    try:
        packed: bytes = msgpack.packb(obj, use_bin_type=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedFrame(f"this cannot be sent as msgpack: {error}; use numbers, text, lists and maps") from error
    return packed


def join_packed(objects: Sequence[bytes]) -> bytes:
    """Return a msgpack list of objects that are packed already; they are copied, not packed again."""
    header: bytes = msgpack.Packer().pack_array_header(len(objects))
    return b"".join((header, *objects))


def check_shape(data: bytes, max_items: int, max_depth: int) -> None:
    """See that a frame holds not too many objects, nor nested too deep, before any of them is made.

    Megabytes of empty lists would cost a hundred times their size. Small frames are not looked at: they can't hold
    much. What is no msgpack is left to the decoder. Raises: MalformedFrame.
    """
    if len(data) <= _SMALL_BYTES:
        return
    at = items = 0
    left = 1
    outer: list[int] = []
    try:
        while left or outer:
            if not left:
                left = outer.pop()
                continue
            left -= 1
            items += 1
            if items > max_items:
                raise MalformedFrame(f"the frame holds more than {max_items} values; send less at once")
            at, inside = _after(data, at)
            if inside:
                outer.append(left)
                left = inside
                if len(outer) > max_depth:
                    raise MalformedFrame(f"the frame is nested more than {max_depth} deep")
    except IndexError:
        return  # it ends too early


def _after(data: bytes, at: int) -> tuple[int, int]:
    """Return where the object at a place goes on or ends, and how many objects are inside it. Raises: IndexError."""
    first = data[at]
    skipped, length_bytes, per_item = _FORMATS[first]
    if not length_bytes:
        return at + skipped, per_item
    length = int.from_bytes(data[at + 1 : at + 1 + length_bytes])
    if per_item:
        return at + skipped, length * per_item
    return at + skipped + length, 0


def _formats() -> list[tuple[int, int, int]]:
    """For each first byte: the bytes of header and fixed value, those of a length after it, and the items per length.

    Where no length follows, the last number is the items themselves. Source: the msgpack specification, "Formats".
    """
    table = [(1, 0, 0)] * 256
    for first in range(0x80, 0x90):
        table[first] = (1, 0, 2 * (first & 0x0F))
    for first in range(0x90, 0xA0):
        table[first] = (1, 0, first & 0x0F)
    for first in range(0xA0, 0xC0):
        table[first] = (1 + (first & 0x1F), 0, 0)
    for first, size in zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True):
        table[first] = (1 + size, size, 0)
    for first, size in zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True):
        table[first] = (2 + size, size, 0)
    for first, size in zip((0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3), _NUMBER_BYTES, strict=True):
        table[first] = (1 + size, 0, 0)
    for exponent, first in enumerate(range(0xD4, 0xD9)):
        table[first] = (2 + 2**exponent, 0, 0)
    for first, size in zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True):
        table[first] = (1 + size, size, 0)
    for first, size, per_item in ((0xDC, 2, 1), (0xDD, 4, 1), (0xDE, 2, 2), (0xDF, 4, 2)):
        table[first] = (1 + size, size, per_item)
    return table


_NUMBER_BYTES: Final = (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)
_FORMATS: Final = _formats()
_SMALL_BYTES: Final = 4096


def unpack_map(data: bytes | bytearray | memoryview, max_bytes: int) -> dict[str, Any]:
    """Return the one map that ``data`` holds.

    Raises: OversizedFrame over ``max_bytes``; MalformedFrame if it is not msgpack, more than one object, not a map,
        has keys that are not text, an extension type, or a list or map of over ``MAX_ITEMS`` items.
    """
    return as_map(unpack(data, max_bytes))


def unpack(data: bytes | bytearray | memoryview, max_bytes: int) -> object:
    """Return the one object that ``data`` holds, of whatever kind. Raises: as ``unpack_map``."""
    if len(data) > max_bytes:
        raise OversizedFrame(f"a frame has {len(data)} bytes and the limit is {max_bytes}; send bulk bytes over HTTP")
    longest = min(MAX_ITEMS, len(data))  # what is announced is reserved: nested lists would announce it many times
    try:
        obj: object = msgpack.unpackb(data, max_array_len=longest, max_map_len=longest, ext_hook=_refuse_extension)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise MalformedFrame(f"the frame is not msgpack: {error}") from error
    return obj


def as_map(obj: object) -> dict[str, Any]:
    """Return an unpacked object that is a map with keys of text. Raises: MalformedFrame if it is not."""
    if not isinstance(obj, dict):
        raise MalformedFrame(f"the frame is a {type(obj).__name__} and must be a map")
    if not all(isinstance(key, str) for key in obj):
        raise MalformedFrame("the frame has a key that is not text")
    return obj


def _refuse_extension(code: int, _data: bytes) -> Never:
    raise ValueError(f"extension type {code} is not used here")
