"""Writes an update as it leaves its client in a secure sum: as words, masked, block by block."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from protocol.digests import new_hasher
from protocol.errors import MalformedTensors
from protocol.masked_layout import MASKED_METADATA, WORD_DTYPES
from protocol.secagg.member import Member
from protocol.secure_messages import SecureTerms
from protocol.secure_wire import grid_of
from protocol.tensors import DTYPE_BYTES, HEADER_LENGTH_BYTES, Header, TensorBytes, read_header

_BLOCK_ELEMENTS: Final = 1 << 18
_FLOATS: Final[dict[str, np.dtype[Any]]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def write_masked(source: bytes | Path, target: BinaryIO, terms: SecureTerms, samples: int, member: Member) -> str:
    """Write a plain update as a masked one; return its digest. ``member`` has agreed on masks, and masked nothing.

    Memory: some blocks of a fixed size. Raises: MalformedTensors for an update that is no float tensors;
    SecureSumFailed for NaN; OSError.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as plain:
        header = _header_of(plain)
        grid, hasher = grid_of(terms), new_hasher()
        tensors = sorted(header.tensors.items())
        lead = _lead(tensors, WORD_DTYPES[terms.bits])
        target.write(lead)
        hasher.update(lead)
        for name, entry in tensors:
            count = (entry.stop - entry.start) // DTYPE_BYTES[entry.dtype]
            for first in range(0, count, _BLOCK_ELEMENTS):
                values = _values(plain, name, entry, first, min(_BLOCK_ELEMENTS, count - first))
                words = grid.encode(values, samples)
                member.mask(words)
                data = words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()
                target.write(data)
                hasher.update(data)
    return hasher.hexdigest()


def _header_of(plain: BinaryIO) -> Header:
    length = plain.read(HEADER_LENGTH_BYTES)
    data = length + plain.read(int.from_bytes(length, "little"))
    total_bytes = plain.seek(0, io.SEEK_END)
    return read_header(data, total_bytes)


def _values(plain: BinaryIO, name: str, entry: TensorBytes, first: int, count: int) -> NDArray[Any]:
    size_bytes = DTYPE_BYTES[entry.dtype]
    plain.seek(entry.start + first * size_bytes)
    data = plain.read(count * size_bytes)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, dtype="<u2").astype("<u4") << 16).view("<f4")
    if entry.dtype not in _FLOATS:
        raise MalformedTensors(f"tensor {name!r} is {entry.dtype}: only float updates can be summed in secret")
    return np.frombuffer(data, dtype=_FLOATS[entry.dtype])


def _lead(tensors: list[tuple[str, TensorBytes]], dtype: str) -> bytes:
    """Return all that comes before the words, which follow in the order of the tensors' names."""
    document: dict[str, object] = {"__metadata__": dict(MASKED_METADATA)}
    at = 0
    for name, entry in tensors:
        stop = at + (entry.stop - entry.start) // DTYPE_BYTES[entry.dtype] * DTYPE_BYTES[dtype]
        document[name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_LENGTH_BYTES)
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text
