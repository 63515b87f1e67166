"""Who may open a WebSocket at all: with a token, and while the farm takes clients in."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from farm_server.tokens import Tokens
from protocol.errors import FarmError, Unauthorized, Unavailable
from protocol.rest import ErrorBody


class Door:
    """While ``refuses`` gives a reason, nobody new is let in."""

    def __init__(self, tokens: Tokens, refuses: Callable[[], str | None]) -> None:
        self._tokens = tokens
        self._refuses = refuses

    async def lets_in(self, websocket: WebSocket) -> bool:
        """Accept the connection, or answer its handshake with the reason why not."""
        try:
            self._tokens.role_of(websocket.headers.get("authorization"))
        except Unauthorized as error:
            await _deny(websocket, HTTPStatus.UNAUTHORIZED, error)
            return False
        if (reason := self._refuses()) is not None:
            await _deny(websocket, HTTPStatus.SERVICE_UNAVAILABLE, Unavailable(f"no client is let in: {reason}"))
            return False
        await websocket.accept()
        return True


async def _deny(websocket: WebSocket, status: HTTPStatus, error: FarmError) -> None:
    body = ErrorBody(code=error.code, message=error.message)
    await websocket.send_denial_response(JSONResponse(body.model_dump(), status_code=status))
