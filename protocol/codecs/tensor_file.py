"""A tensor file written from live tensors, without a copy of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from protocol.codecs.reading import TensorReader
from protocol.tensor_header import header_bytes


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """Return the file in chunks, views of the tensors but for the header; equal tensors give equal bytes.

    The widest elements come first, so that all are aligned, and those of equal width by their names.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    reader = TensorReader(ordered, metadata)
    return [header_bytes(reader.header), *(reader.view(name) for name in ordered)]
