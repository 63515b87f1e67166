"""Why a secure sum can't be had, or must not be."""

from __future__ import annotations

from typing import ClassVar

from protocol.errors import FarmError


class SecureSumFailed(FarmError):
    """A round of secure aggregation can't go on; it is abandoned, and begun again with fresh keys."""

    code: ClassVar[str] = "secure_sum"


class BelowThreshold(SecureSumFailed):
    """Fewer clients are left than the threshold: nobody can unmask their sum."""

    code: ClassVar[str] = "below_threshold"


class WrongShares(SecureSumFailed):
    """Shares don't give the secret that its owner committed to: one of them is wrong, or of another round."""

    code: ClassVar[str] = "wrong_shares"


class NotForThisRound(SecureSumFailed):
    """A message is not of this round, or not for this client: it is old, altered or misdirected."""

    code: ClassVar[str] = "not_for_this_round"


class WouldUnmask(SecureSumFailed):
    """To answer would let the server take a single client's masks off."""

    code: ClassVar[str] = "would_unmask"
