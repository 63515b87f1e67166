"""A stored file's digest, at the cost of one block of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocol.digests import new_hasher

_BLOCK_BYTES: Final = 1024 * 1024


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, read block by block. Raises: OSError.

    The file is never mapped: one that is cut short meanwhile would end the process.
    """
    hasher, block = new_hasher(), memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            hasher.update(block[:count])
    return hasher.hexdigest()
