"""Fields of 1, 2 or 4 bits, packed into bytes by planes, so that whole bytes are shifted at once and none interleaved.

Of ``count`` fields in ``size = ceil(count * bits / 8)`` bytes, field ``e`` is in byte ``e mod size``, in the bits from
``bits * (e div size)`` on (bit 0 is the lowest).
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocol.codecs.reading import Elements, Reader, Scratch
from protocol.encoded import packed


def pack(fields: Tensor, bits: int) -> Tensor:
    """Pack the 1-D uint8 ``fields``, whose higher bits are zero."""
    size = packed(fields.numel(), bits).elements
    planes = torch.nn.functional.pad(fields, (0, size * (8 // bits) - fields.numel())).view(-1, size)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).unsqueeze(1)
    return (planes << shifts).sum(dim=0, dtype=torch.uint8)


class Fields:
    """A packed part, read by ranges of fields."""

    def __init__(self, reader: Reader, tensor: str, part: str, bits: int, scratch: Scratch) -> None:
        self._stored = Elements(reader, tensor, part, scratch)
        self._size = self._stored.count
        self._purpose = f"fields {part}"
        self._bits = bits
        self._scratch = scratch

    def read(self, start: int, stop: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return fields ``start`` to ``stop``, until the next call. As int8, a field's highest bit is its sign."""
        fields = self._scratch.take(self._purpose, stop - start, torch.uint8)
        for plane in range(start // self._size, -(-stop // self._size)):
            first = plane * self._size
            low, high = max(start, first), min(stop, first + self._size)
            # A product modulo 256 is a shift to the left; torch has vector instructions for it, and none for the shift.
            into_highest_bits = 1 << (8 - self._bits * (plane + 1))
            stored = self._stored.read(low - first, high - first)
            torch.mul(stored, into_highest_bits, out=fields[low - start : high - start])
        return fields.view(dtype).bitwise_right_shift_(8 - self._bits)
