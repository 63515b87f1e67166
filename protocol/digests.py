"""How bytes are named: BLAKE3, 32 bytes, lowercase hexadecimal."""

from __future__ import annotations

import re
from typing import Annotated, Final

from blake3 import blake3
from pydantic import StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_digest(text: str) -> bool:
    """Whether ``text`` is written as a digest; one that is not could name a file outside the store."""
    return _DIGEST.fullmatch(text) is not None


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the digest of ``data``: 64 lowercase hexadecimal characters."""
    return blake3(data).hexdigest()


def new_hasher(data: bytes = b"") -> blake3:
    """Return an incremental hasher of what begins with ``data``: ``update(bytes)``, ``digest()``, ``hexdigest()``."""
    return blake3(data)
