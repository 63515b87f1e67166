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
    try:
        obj: object = msgpack.unpackb(data, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, ext_hook=_refuse_extension)
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
