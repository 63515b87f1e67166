"""What the farm sends a client about its own credit: as much of its work as committed rounds contain."""

from __future__ import annotations

from typing import Final

from protocol.bounds import Count, Finite
from protocol.frozen import Frozen
from protocol.wording import counted, flops_text

CREDIT: Final = "credit"
"""A feature of clients: they take their credit with an acknowledgement."""


class Credit(Frozen):
    """Samples, and the floating point operations of those of which they were measured (rounded to 53 bits)."""

    samples: Count = 0
    flops: Finite = 0.0

    def in_words(self) -> str:
        """Return it for people, such as ``12,345 samples, 1.2 PFLOP``."""
        samples = counted(self.samples, "sample")
        return f"{samples}, {flops_text(int(self.flops))}" if self.flops > 0 else samples
