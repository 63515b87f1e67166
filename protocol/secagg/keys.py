"""What two clients of a round agree on through a server that can't know it, and how they send each other shares.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) and AES-256-GCM (NIST SP 800-38D). Every key is of one round, one pair and one
use: its name goes into the derivation, so a message of another round, pair or direction doesn't open.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.secagg.errors import NotForThisRound
from protocol.secagg.sizes import KEY_BYTES

_ONLY_MESSAGE: Final = bytes(12)
"""The nonce: each of these keys encrypts one message."""


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one, which is any 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_seed(own_private: bytes, their_public: bytes, context: bytes) -> bytes:
    """Return the seed of the mask between two clients: both compute the same. Raises: NotForThisRound of a bad key."""
    return _derived(_exchanged(own_private, their_public), b"pair mask", context)


def self_seed(secret: bytes, context: bytes) -> bytes:
    """Return the seed of a client's own mask."""
    return _derived(secret, b"self mask", context)


def commitment(secret: bytes, context: bytes) -> bytes:
    """Return what tells this secret of 256 random bits from others, and nothing of what it is."""
    return _derived(secret, b"commitment", context)


def seal(message: bytes, own_private: bytes, their_public: bytes, names: bytes) -> bytes:
    """Encrypt the one message from this client to that one. ``names``: the round, who sends, who receives."""
    key = _derived(_exchanged(own_private, their_public), b"shares", names)
    return AESGCM(key).encrypt(_ONLY_MESSAGE, message, names)


def open_sealed(sealed: bytes, own_private: bytes, their_public: bytes, names: bytes) -> bytes:
    """Decrypt it. Raises: NotForThisRound if it is not that message."""
    key = _derived(_exchanged(own_private, their_public), b"shares", names)
    try:
        return AESGCM(key).decrypt(_ONLY_MESSAGE, sealed, names)
    except InvalidTag:
        raise NotForThisRound from None


def _exchanged(own_private: bytes, their_public: bytes) -> bytes:
    try:
        public = X25519PublicKey.from_public_bytes(their_public)
        return X25519PrivateKey.from_private_bytes(own_private).exchange(public)
    except ValueError:  # a key of low order, or of another length
        raise NotForThisRound("a client's public key is none") from None


def _derived(secret: bytes, use: bytes, context: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"aifarm secagg 1/" + use + b"/" + context).derive(secret)
