"""What lender and borrower say to each other, over ``HOME/blobs.sock``.

A request is a record of 65 bytes: what to do, and the digest of a blob in 64 hexadecimal digits. A lease is answered
with one byte; with ``LENT`` comes a read-only handle of the file (``SCM_RIGHTS``). The end of a lease has no answer.
All leases of a connection end with it, and so with the borrower's process.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

DIGEST_CHARACTERS: Final = 64
RECORD_BYTES: Final = 1 + DIGEST_CHARACTERS
LENT: Final = b"Y"
REFUSED: Final = b"N"
_DIGEST: Final = re.compile(rf"[0-9a-f]{{{DIGEST_CHARACTERS}}}")


class Wish(StrEnum):
    """The first byte of a request."""

    LEASE = "L"
    END = "E"


def request(wish: Wish, digest: str) -> bytes:
    """Return the record."""
    return f"{wish}{digest}".encode("ascii")


def read_request(record: bytes) -> tuple[Wish, str]:
    """Return what is asked. Raises: ValueError if that is no request."""
    text = record.decode("ascii")
    digest = text[1:]
    if not _DIGEST.fullmatch(digest):
        raise ValueError("not a digest")
    return Wish(text[0]), digest
