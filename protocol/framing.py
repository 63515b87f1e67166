"""Frames on a byte stream: a 4-byte big-endian length, then so many bytes of msgpack map. Sans I/O.

WebSockets frame for themselves; this is for the socket between agent and executor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from protocol.errors import OversizedFrame
from protocol.limits import MAX_FRAME_BYTES
from protocol.packing import pack_map, unpack_map

_LENGTH: Final = struct.Struct(">I")


def pack_frame(obj: Mapping[str, Any], max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """Return ``obj`` as one frame, ready to write.

    Raises: MalformedFrame if it has no msgpack form; OversizedFrame if the map takes over ``max_bytes``.
    """
    body = pack_map(obj)
    _check_length(len(body), max_bytes)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a byte stream into frames, whatever pieces it arrives in."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> list[dict[str, Any]]:
        """Add received bytes and return the maps that are now complete, in order.

        Raises: OversizedFrame as soon as a length over the limit was read; MalformedFrame for a body that is no
            map. A stream cannot be followed past either: close it.
        """
        self._buffer += data
        return list(self._complete())

    @property
    def pending_bytes(self) -> int:
        """Count the bytes of the frame that is not complete: over 0 at the stream's end means it was cut."""
        return len(self._buffer)

    def _complete(self) -> Iterator[dict[str, Any]]:
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            _check_length(length, self._max_bytes)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view, view[_LENGTH.size : end] as body:
                frame = unpack_map(body, self._max_bytes)
            del self._buffer[:end]
            yield frame


def _check_length(length: int, max_bytes: int) -> None:
    if length > max_bytes:
        raise OversizedFrame(f"a frame of {length} bytes is over the limit of {max_bytes}; pass large blobs as files")
