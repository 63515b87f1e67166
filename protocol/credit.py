"""What a client is told of its own credit: as much of its work as committed rounds contain."""

from __future__ import annotations

from typing import Final

from protocol.bounds import Count, Finite
from protocol.frozen import Frozen

CREDIT: Final = "credit"
"""A feature of clients: they take their credit with an acknowledgement."""


class Credit(Frozen):
    """Samples, and the floating point operations of those of which they were measured (rounded to 53 bits)."""

    samples: Count = 0
    flops: Finite = 0.0
