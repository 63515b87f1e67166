"""Seeds for different uses, derived from the task's own. Free of torch."""

from __future__ import annotations

from blake3 import blake3


def derived_seed(*parts: object) -> int:
    """Return a seed from 0 to 2**63 - 1 that depends on each part: the first 8 bytes of their BLAKE3, little endian."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake3(text.encode()).digest()[:8], "little") & (2**63 - 1)
