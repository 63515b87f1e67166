"""The outermost layer of the application: it looks at a request's head and at how its body comes, and parses nothing.

A token is checked from the headers alone, so that who has none can make the farm read nothing. What a body may be is
told by the route; the blobs' routes stream theirs to disk and count by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from farm_server.edge.credentials import Headers, header, token_refusal, upgrade_refusal
from farm_server.edge.hosts import AllowedHosts
from farm_server.edge.http_protocol import CONNECTION, Seen
from farm_server.edge.refusal import Refusal
from farm_server.environment.tokens import TokenRole, Tokens

SMALL_BODY_BYTES: Final = 64 * 1024
"""More than any request needs that names no shards."""
BLOBS: Final = "/v1/blobs/"
SUBMIT: Final = "/v1/tasks"
CERTIFICATES: Final = "/v1/certificates/"
CERTIFICATE_KEY: Final = "/v1/keys/certificate"
"""The public key: everybody may check a certificate."""
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
    if path.startswith(CERTIFICATES):
        return Needs(TokenRole.VOLUNTEER, SMALL_BODY_BYTES)
    if path.startswith("/v1/") and path != CERTIFICATE_KEY:
        return Needs(TokenRole.RESEARCHER, SMALL_BODY_BYTES)
    return Needs(None, SMALL_BODY_BYTES)


BODY_GRACE_SECONDS: Final = 20.0
LEAST_BODY_RATE: Final = 16 * 1024
"""Bytes per second, on the average since the head: a body that comes more slowly, after the grace, is given up."""


class Gate:
    """ASGI middleware for HTTP requests."""

    def __init__(self, app: ASGIApp, tokens: Tokens, hosts: AllowedHosts, max_body_bytes: int) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        needs = needs_of(scope["method"], scope["path"], self._max_body_bytes)
        seen: Seen | None = scope.get("extensions", {}).get(CONNECTION)
        if (refusal := self._refusal(needs, _headers(scope))) is not None:
            if seen is not None:
                seen.refused(refusal)
            await _answer(refusal, send)
            return
        if seen is not None and needs.role is not None:
            seen.has_token()
        if needs.body_bytes is None:
            await self._app(scope, receive, send)
        else:
            await self._app(scope, Body(receive, needs.body_bytes).receive, send)

    def _refusal(self, needs: Needs, headers: Headers) -> Refusal | None:
        if needs.role is not None:
            refusal = token_refusal(self._tokens, needs.role, headers)
        else:
            refusal = self._hosts.refusal(header(headers, b"host"))  # who has a token is no page of another site
        if refusal is not None:
            return refusal
        announced = _announced_bytes(headers)
        if needs.body_bytes is not None and announced > needs.body_bytes:
            what = f"the request has {announced} bytes, at most {needs.body_bytes} are allowed; upload data as blobs"
            return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", what)
        return None


class UpgradeGate:
    """ASGI application for WebSockets: checks the token, also where the connection itself did not, and lets them in.

    Nothing of the framework stands between: its layers would cost each client a dozen coroutines, for as long as it is
    connected, and each frame as many calls.
    """

    def __init__(self, tokens: Tokens, serve: Callable[[WebSocket], Awaitable[None]]) -> None:
        self._tokens = tokens
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or refuse its upgrade."""
        if (refusal := upgrade_refusal(self._tokens, scope["path"], _headers(scope))) is not None:
            await _deny(refusal, send)
        else:
            await self._serve(WebSocket(scope, receive, send))


class Body:
    """Counts a body as it is read, and times it. What is too much, or too slow, ends as an ``HTTPException``."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._read_bytes = 0
        self._is_whole = False
        self._began_at = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """Return the next message. Raises: HTTPException, the only kind that the framework lets through here."""
        if self._is_whole:
            return await self._receive()
        by_now = self._began_at + BODY_GRACE_SECONDS + self._read_bytes / LEAST_BODY_RATE
        try:
            async with asyncio.timeout_at(by_now):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly; send it again") from None
        self._is_whole = not message.get("more_body", False)
        self._read_bytes += len(message.get("body", b""))
        if self._read_bytes > self._max_bytes:
            what = f"more than {self._max_bytes} bytes; upload data as blobs"
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what)
        return message


def _headers(scope: Scope) -> Headers:
    headers: Headers = scope["headers"]
    return headers


def _announced_bytes(headers: Headers) -> int:
    said = header(headers, b"content-length") or ""
    return int(said) if said.isascii() and said.isdigit() else 0


async def _answer(refusal: Refusal, send: Send) -> None:
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": refusal.headers})
    await send({"type": "http.response.body", "body": refusal.body})


async def _deny(refusal: Refusal, send: Send) -> None:
    start = {"type": "websocket.http.response.start", "status": int(refusal.status), "headers": refusal.headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": refusal.body})
