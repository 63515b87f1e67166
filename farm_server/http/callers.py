"""The caller of a request, to whom upload turns, limits and unused blobs are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import Request

from farm_server.environment.tokens import TokenRole, Tokens

CLIENT_HEADER: Final = "x-farm-client"
_MAX_CLIENT_CHARS: Final = 64


class Callers:
    """``is_connected`` says whether a client (by its id) is connected from an address."""

    def __init__(self, tokens: Tokens, is_connected: Callable[[str, str], bool]) -> None:
        self._tokens = tokens
        self._is_connected = is_connected

    def client_of(self, request: Request) -> str:
        """Return whom turns and limits count a request for: who it says it is, if so, else where it comes from.

        A volunteer is who it says if that client is connected from the same address; a researcher is believed.
        """
        said = request.headers.get(CLIENT_HEADER, "")[:_MAX_CLIENT_CHARS]
        address = request.client.host if request.client is not None else "unknown"
        is_name = bool(said) and said.isascii() and said.isprintable()
        if is_name and (self.is_researcher(request) or self._is_connected(said, address)):
            return said
        return address

    def is_researcher(self, request: Request) -> bool:
        """Whether the request has the farm token."""
        return self._tokens.role_of(request.headers.get("authorization")) is TokenRole.RESEARCHER

    def owner_of(self, request: Request) -> str | None:
        """Return whose unused blob a request brings: a volunteer's, or None for a researcher's."""
        return None if self.is_researcher(request) else self.client_of(request)
