"""How many bytes keys and shares have: what messages are bounded by, without the arithmetic behind them."""

from __future__ import annotations

from typing import Final

KEY_BYTES: Final = 32
"""Of X25519, of AES-256, of a commitment, and of a secret."""
SHARE_BYTES: Final = 66
"""Of a share: a number below 2**521 - 1."""
SEALED_BYTES: Final = 2 * SHARE_BYTES + 16
"""Of the two shares that one client sends another, with the tag of AES-GCM."""
