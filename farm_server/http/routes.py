"""What each part of the API asks of a request before it is read: a token, and how long a body may be. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from farm_server.environment.tokens import TokenRole

SMALL_BODY_BYTES: Final = 64 * 1024
"""More than any request needs that names no shards."""
BLOBS: Final = "/v1/blobs/"
SUBMIT: Final = "/v1/tasks"
_BULK: Final = frozenset({"PUT", "PATCH"})


@dataclass(frozen=True, slots=True)
class Needs:
    """``role``: the least token, None where none is needed. ``body_bytes``: None where the route counts by itself."""

    role: TokenRole | None
    body_bytes: int | None


def needs_of(method: str, path: str, max_body_bytes: int) -> Needs:
    """Return what a request needs. ``max_body_bytes`` is for a submission, which names every shard."""
    if path.startswith(BLOBS):
        return Needs(TokenRole.VOLUNTEER, None if method in _BULK else SMALL_BODY_BYTES)
    if path == SUBMIT and method == "POST":
        return Needs(TokenRole.RESEARCHER, max_body_bytes)
    if path.startswith("/v1/"):
        return Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)
    return Needs(None, SMALL_BODY_BYTES)
