"""Refuses JSON bodies that are too large, before they are read into memory. Blobs stream and have their own limit."""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm_server.http.errors import TOO_LARGE, answer

_BULK: Final = frozenset({"PUT", "PATCH"})


class BodyLimit:
    """ASGI middleware for every HTTP request but those that bring a blob's bytes."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless it announces or brings too much."""
        if scope["type"] != "http" or (scope["method"] in _BULK and scope["path"].startswith("/v1/blobs/")):
            await self._app(scope, receive, send)
            return
        announced = int(dict(scope["headers"]).get(b"content-length", b"0"))
        if announced > self._max_bytes:
            message = f"the request has {announced} bytes, at most {self._max_bytes} are allowed; upload data as blobs"
            refusal = answer(TOO_LARGE, "request_too_large", message)
            await refusal(scope, receive, send)
            return
        await self._app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        read_bytes = 0

        async def counted() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > self._max_bytes:
                # the framework lets only this kind of error through while it reads a body
                raise HTTPException(TOO_LARGE, f"more than {self._max_bytes} bytes; upload data as blobs")
            return message

        return counted
