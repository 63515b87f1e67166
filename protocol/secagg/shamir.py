"""Secrets as shares, of which some number gives the secret and fewer give nothing.

Shamir, "How to share a secret", CACM 22(11), 1979: the secret is a polynomial's value at 0, over a prime field, and a
share its value at another point; any ``threshold`` of them determine a polynomial of degree ``threshold - 1``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from protocol.secagg.errors import BelowThreshold, WrongShares
from protocol.secagg.sizes import KEY_BYTES, SHARE_BYTES

PRIME: Final = 2**521 - 1
"""A Mersenne prime: secrets of 256 bits fit, and a share takes 66 bytes."""
SECRET_BYTES: Final = KEY_BYTES
_DRAWN_BYTES: Final = 80
"""So many more bits than the prime has that what is left of them after division is even to 2**-119."""

Draw = Callable[[int], bytes]
"""Returns so many random bytes: ``secrets.token_bytes``."""


def share(secret: bytes, points: Sequence[int], threshold: int, draw: Draw) -> dict[int, bytes]:
    """Return a share for each point, by point; any ``threshold`` of them give the secret.

    ``points`` differ and are from 1 on. Raises: ValueError for arguments that would give the secret away or lose it.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError(f"{threshold} of {len(points)} shares of {len(secret)} bytes")
    if len(set(points)) < len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("points of shares differ, and are from 1 on: the one at 0 is the secret")
    drawn = (int.from_bytes(draw(_DRAWN_BYTES), "big") % PRIME for _ in range(threshold - 1))
    coefficients = [int.from_bytes(secret, "big"), *drawn]
    return {point: _value(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points}


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret that the shares, by point, were made of: by Lagrange's interpolation at 0.

    More shares than the threshold are looked at too: all lie on one polynomial of that degree, or none counts.
    Raises: BelowThreshold; WrongShares, which fewer than ``threshold + 1`` shares can't always show.
    """
    if len(shares) < threshold:
        raise BelowThreshold
    values = {point: int.from_bytes(one, "big") for point, one in shares.items()}
    if not all(1 <= point < PRIME and value < PRIME for point, value in values.items()):
        raise WrongShares
    used = dict(list(values.items())[:threshold])
    for point, value in values.items():
        if point not in used and _interpolated(used, point) != value:
            raise WrongShares
    secret = _interpolated(used, 0)
    if secret >= 1 << (8 * SECRET_BYTES):
        raise WrongShares
    return secret.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: Sequence[int], point: int) -> int:
    """Return a polynomial's value, by Horner's rule."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _interpolated(values: Mapping[int, int], at: int) -> int:
    """Return the value at a point of the one polynomial through all of these."""
    total = 0
    for point, value in values.items():
        above = below = 1
        for other in values:
            if other != point:
                above = above * (at - other) % PRIME
                below = below * (point - other) % PRIME
        total = (total + value * above * pow(below, -1, PRIME)) % PRIME
    return total
