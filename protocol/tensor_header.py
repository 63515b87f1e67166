"""The header of a tensor file that is written from live tensors, without a copy of their data."""

from __future__ import annotations

import json
from typing import Final

from protocol.tensors import HEADER_LENGTH_BYTES, Header

_ALIGNMENT_BYTES: Final = 8


def header_bytes(header: Header) -> bytes:
    """Return all that comes before the data of the header's tensors, which follows in their order without a hole.

    Equal headers give equal bytes: the safetensors package writes metadata in random order, and files of equal
    content would have several digests.
    """
    document: dict[str, object] = {}
    if header.metadata:
        document["__metadata__"] = dict(sorted(header.metadata.items()))
    at = 0
    for name, entry in header.tensors.items():
        stop = at + entry.stop - entry.start
        document[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-(HEADER_LENGTH_BYTES + len(text)) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(HEADER_LENGTH_BYTES, "little") + text
