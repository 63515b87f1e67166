"""What a masked update must look like, checked from its header alone: the layout's parameters as words of the sum."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from protocol.errors import LayoutMismatch
from protocol.secure_aggregation import Bits
from protocol.tensors import Header, Layout, TensorSpec

MASKED_FORMAT: Final = "aifarm-masked-1"
MASKED_METADATA: Final = MappingProxyType({"format": MASKED_FORMAT})
"""The ``__metadata__`` of a masked update."""
WORD_DTYPES: Final = MappingProxyType({32: "I32", 64: "I64"})
"""How words are stored: safetensors readers know no unsigned ones."""


def check_masked(layout: Layout, header: Header, bits: Bits) -> None:
    """Check that an update has each tensor that clients return, in its shape, as words. Raises: LayoutMismatch."""
    if header.metadata != MASKED_METADATA:
        raise LayoutMismatch(f"the update's metadata is not that of {MASKED_FORMAT!r}: the task's sums are secure")
    expected = {spec.name: spec for spec in layout.returned}
    if differ := sorted(expected.keys() ^ header.tensors.keys()):
        raise LayoutMismatch(f"tensor {differ[0]!r} is only in one of the masked update and the layout")
    for name, spec in expected.items():
        got = header.tensors[name]
        if (got.dtype, got.shape) != (WORD_DTYPES[bits], spec.shape):
            raise LayoutMismatch(
                f"tensor {name!r} is {got.dtype} {list(got.shape)} in the masked update, and has to be "
                f"{WORD_DTYPES[bits]} {list(spec.shape)}"
            )


def places_of(layout: Layout) -> dict[TensorSpec, int]:
    """Return at which word of the update each tensor begins: masks run over them in the order of their names."""
    places, at = {}, 0
    for spec in sorted(layout.returned, key=lambda spec: spec.name):
        places[spec] = at
        at += spec.elements
    return places
