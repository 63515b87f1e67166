"""zstd around a tensor file, where that makes it smaller: streamed, and unwrapped only as far as it may be large.

A wrapped file is one zstd frame (RFC 8878) and is recognised by its first four bytes, which no tensor file has: there
they would be the length of a header of 4 GB.
"""

from __future__ import annotations

import io
import sys
from typing import Final, Protocol

from protocol.errors import MalformedTensors

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"\x28\xb5\x2f\xfd"
WORTHWHILE: Final = 0.95
"""A file is sent wrapped if that leaves at most this fraction of its bytes."""
LARGEST_WINDOW_LOG: Final = 23
"""A frame may ask its reader for a window of 8 MiB, and no more: the memory that unwrapping takes."""
_LEVEL: Final = 3
_PIECE_BYTES: Final = 1 << 20
_TRIAL_BYTES: Final = 16 << 20
"""What does not become smaller in so many bytes is not tried to the end."""


class Source(Protocol):
    """What is read from: a binary file, or anything with this much of one."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


class Target(Protocol):
    """What is written to: a binary file, or anything with this much of one."""

    def write(self, data: bytes, /) -> int:
        """Write all of it; return how many bytes that are."""


def is_wrapped(lead: bytes | bytearray | memoryview) -> bool:
    """Whether a file that begins with these bytes (at least four) is a zstd frame."""
    return bytes(lead[: len(MAGIC)]) == MAGIC


def wrap(source: Source, target: Target) -> bool:
    """Write ``source`` as a zstd frame to ``target``; False if that is not worthwhile, and ``target`` is then useless.

    Raises: OSError of either.
    """
    compressor = zstd.ZstdCompressor(_LEVEL)
    read = written = 0
    while piece := source.read(_PIECE_BYTES):
        read += len(piece)
        written += target.write(compressor.compress(piece))
        if read >= _TRIAL_BYTES and written > WORTHWHILE * read:
            return False
    written += target.write(compressor.flush())
    return written <= WORTHWHILE * read


def unwrap(source: Source, target: Target, limit_bytes: int) -> int:
    """Write what the zstd frame in ``source`` holds to ``target``, and return how many bytes that are.

    Raises: MalformedTensors if it is no frame, a cut one, one with something after it, one that needs a window over
        2^23 bytes, or one that holds more than ``limit_bytes`` (then at most so many have been written); OSError.
    """
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: LARGEST_WINDOW_LOG})
    written = 0
    try:
        while not decompressor.eof:
            piece = source.read(_PIECE_BYTES) if decompressor.needs_input else b""
            if not piece and decompressor.needs_input:
                raise MalformedTensors("the compressed update is cut: its zstd frame does not end")
            data = decompressor.decompress(piece, max_length=_PIECE_BYTES)
            if written + len(data) > limit_bytes:
                raise MalformedTensors(f"the compressed update holds more than the {limit_bytes} bytes of its layout")
            written += target.write(data)
    except zstd.ZstdError as error:
        raise MalformedTensors(f"the compressed update is no zstd frame that can be read: {error}") from error
    if decompressor.unused_data or source.read(1):
        raise MalformedTensors("the compressed update has bytes after its zstd frame")
    return written


def wrap_bytes(data: bytes) -> bytes:
    """Return the data as a zstd frame if that is worthwhile, or else as it is."""
    target = io.BytesIO()
    return target.getvalue() if wrap(io.BytesIO(data), target) else data


def unwrap_bytes(data: bytes, limit_bytes: int) -> bytes:
    """Return what a wrapped file holds, or the data as it is if it is not wrapped. Raises: MalformedTensors."""
    if not is_wrapped(data):
        return data
    target = io.BytesIO()
    unwrap(io.BytesIO(data), target, limit_bytes)
    return target.getvalue()
