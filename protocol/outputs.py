"""The outputs of a part of a map, as one blob: how many there are, how long each is, then one after the other.

    magic (8 bytes) | count (u32) | length of each output (u32) | outputs

All numbers are little-endian. What an output's bytes mean is the executor's and the researcher's business
(``farm_client.outputs``); whoever keeps them sees by the head alone that there is one for each item.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar, Final

from protocol.errors import FarmError

MAGIC: Final = b"farmout1"
_COUNT: Final = struct.Struct("<I")


class MalformedOutputs(FarmError):
    """The bytes are not the outputs of so many items."""

    code: ClassVar[str] = "malformed_outputs"


def head_bytes(items: int) -> int:
    """Return how long the head of the outputs of so many items is."""
    return len(MAGIC) + _COUNT.size * (1 + items)


def join_outputs(outputs: Sequence[bytes]) -> bytes:
    """Return the outputs as one blob's bytes."""
    lengths = struct.pack(f"<{1 + len(outputs)}I", len(outputs), *map(len, outputs))
    return b"".join((MAGIC, lengths, *outputs))


def check_head(head: bytes, size_bytes: int, items: int) -> None:
    """See that a blob of ``size_bytes``, whose first ``head_bytes(items)`` are these, holds ``items`` outputs.

    Raises: MalformedOutputs.
    """
    if sum(_lengths(head, items)) + head_bytes(items) != size_bytes:
        raise MalformedOutputs(f"the outputs have {size_bytes} bytes, and their lengths say otherwise")


def split_outputs(data: bytes, items: int) -> Iterator[bytes]:
    """Yield the outputs of a blob of so many items, in their order. Raises: MalformedOutputs before the first one."""
    check_head(data, len(data), items)
    ends = accumulate(_lengths(data, items), initial=head_bytes(items))
    return (data[start:end] for start, end in pairwise(ends))


def _lengths(head: bytes, items: int) -> tuple[int, ...]:
    """Return how long each output is. Raises: MalformedOutputs."""
    if len(head) < head_bytes(items) or not head.startswith(MAGIC):
        raise MalformedOutputs(f"these are no outputs of {items} items")
    count, *lengths = struct.unpack_from(f"<{1 + items}I", head, len(MAGIC))
    if count != items:
        raise MalformedOutputs(f"these are the outputs of {count} items, and the part has {items}")
    return tuple(lengths)
