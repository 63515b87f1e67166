"""Masks: pseudorandom words that follow from a seed, any stretch of them at a time.

AES-256 in counter mode (NIST SP 800-38A), as in the paper's implementation: the keystream from a seed. A stretch begins
at any word, so that an update is masked and a sum unmasked block by block.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.secagg.fixed_point import Words

_AES_BLOCK_BYTES: Final = 16


def add_mask(words: Words, seed: bytes, first: int, sign: int) -> None:
    """Add a seed's mask, or take it away (``sign`` -1), from words whose place in the update begins at ``first``."""
    mask = mask_of(seed, first, len(words), words.dtype)
    if sign > 0:
        words += mask
    else:
        words -= mask


def mask_of(seed: bytes, first: int, count: int, dtype: np.dtype[Any]) -> Words:
    """Return the words ``first`` to ``first + count`` of a seed's mask. ``seed``: 32 bytes, used for nothing else."""
    block, skipped_bytes = divmod(first * dtype.itemsize, _AES_BLOCK_BYTES)
    counter = modes.CTR(block.to_bytes(_AES_BLOCK_BYTES, "big"))
    encryptor = Cipher(algorithms.AES(seed), counter).encryptor()
    stream = encryptor.update(bytes(skipped_bytes + count * dtype.itemsize))
    return np.frombuffer(stream, dtype=dtype.newbyteorder("<"), offset=skipped_bytes).astype(dtype, copy=False)
