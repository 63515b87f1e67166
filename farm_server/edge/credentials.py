"""The token of a request, from its headers alone."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from farm_server.edge.refusal import Refusal
from farm_server.environment.tokens import TokenRole, Tokens
from protocol.errors import Unauthorized

Headers = list[tuple[bytes, bytes]]
"""Names in lowercase, as ASGI has them."""
WEBSOCKET: Final = "/v1/farm"


def header(headers: Headers, name: bytes) -> str | None:
    """Return the first header of a (lowercase) name."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)


def token_refusal(tokens: Tokens, least: TokenRole, headers: Headers) -> Refusal | None:
    """Return why a request may not do what ``least`` may, if so."""
    try:
        tokens.require(least, header(headers, b"authorization"))
    except Unauthorized as error:
        return Refusal.of(HTTPStatus.UNAUTHORIZED, error)
    return None


def upgrade_refusal(tokens: Tokens, path: str, headers: Headers) -> Refusal | None:
    """Return why a WebSocket may not be opened, if so: there is one, and it needs a token."""
    if path != WEBSOCKET:
        return Refusal(HTTPStatus.NOT_FOUND, "not_found", f"there is no WebSocket here; dial {WEBSOCKET}")
    return token_refusal(tokens, TokenRole.VOLUNTEER, headers)
