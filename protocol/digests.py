"""How bytes are named: BLAKE3, 32 bytes, lowercase hexadecimal."""

from __future__ import annotations

from typing import Annotated

from blake3 import blake3
from pydantic import StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the digest of ``data``: 64 lowercase hexadecimal characters."""
    return blake3(data).hexdigest()


def new_hasher() -> blake3:
    """Return an incremental hasher with ``update(bytes)`` and ``hexdigest()``."""
    return blake3()
