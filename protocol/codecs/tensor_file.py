"""A tensor file written from live tensors, without a copy of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from protocol.codecs.reading import TensorReader
from protocol.tensors import HEADER_LENGTH_BYTES, Header


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return the file in chunks, views of the tensors but for the header; equal tensors give equal bytes.

    The widest elements come first, so that all are aligned, and those of equal width by their names.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    reader = TensorReader(ordered, metadata)
    return [header_bytes(reader.header), *(reader.view(name) for name in ordered)]


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
