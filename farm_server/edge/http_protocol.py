"""uvicorn's HTTP protocol with what it leaves to a proxy: bounds on heads, their time, and connections.

uvicorn has a time-out for the pause between two requests and none for a request that never ends; it takes heads of any
size, and closes a connection whose request it has not read in a way that may lose the answer.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr

from farm_server.edge.connections import Connection
from farm_server.edge.guard import (
    HEAD_SECONDS,
    KNOWN_LINGER,
    LATE_SECONDS,
    STRANGERS_LINGER,
    UNKNOWN_SECONDS,
    Guard,
    Linger,
)
from farm_server.edge.head import Head
from farm_server.edge.refusal import Refusal
from farm_server.edge.websocket_protocol import GuardedWebSocket

CONNECTION: str = "aifarm.connection"
"""Where the application finds the ``Seen`` of its request: in the scope's ``extensions``."""
_SLOW_HEAD = Refusal(
    HTTPStatus.REQUEST_TIMEOUT, "request_timeout", f"the request's head did not come within {HEAD_SECONDS:g} seconds"
)
_BAD_REQUEST = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "this is no HTTP/1.1 request")


class Seen:
    """How the application reports to the connection what it found out."""

    def __init__(self, guard: Guard, connection: Connection) -> None:
        self._guard = guard
        self._connection = connection

    def has_token(self) -> None:
        """The request carries a token of this farm."""
        self._guard.book.know(self._connection)

    def refused(self, refusal: Refusal) -> None:
        """The request is answered with a refusal."""
        self._guard.note(refusal, self._connection.address)


class _Closing:
    """A response's way to the transport: closing waits for what is still being sent to us."""

    def __init__(self, protocol: GuardedHttp, transport: asyncio.Transport) -> None:
        self._protocol = protocol
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._protocol.close_after_answer()


class GuardedHttp(HttpToolsProtocol):
    """One HTTP connection."""

    def __init__(self, guard: Guard, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._guard = guard
        self._connection: Connection | None = None
        self._head = Head()
        self._in_head = True
        self._in_message = False
        self._moved_on = False
        """Whether the bytes that came last began or ended a message."""
        self._ends = False
        self._left_bytes: int | None = None
        """While lingering: how many bytes may still come."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    # the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Enter the book, which may show another one out."""
        super().connection_made(transport)
        peer = get_remote_addr(transport)
        now = self.loop.time()
        self._connection, dropped = self._guard.book.open(peer[0] if peer else "", self, now)
        self._arm(HEAD_SECONDS)
        for connection in dropped:
            connection.owner.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the book."""
        self._disarm()
        super().connection_lost(exc)
        if self._connection is not None:
            self._guard.book.close(self._connection)

    def drop(self) -> None:
        """Close at once, answer or no answer."""
        self.transport.abort()

    # what comes

    def data_received(self, data: bytes) -> None:
        """Parse, unless the last answer is out."""
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._moved_on = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserError:
            self._refuse(self._head.refusal or _BAD_REQUEST)
        else:
            self._look_after_head(len(data))

    def _look_after_head(self, came_bytes: int) -> None:
        if not self._in_head or self.transport.is_closing():
            return
        if not self._moved_on:
            self._head.raw(came_bytes)
        if self._head.refusal is not None:
            self._refuse(self._head.refusal)
        elif self._timer is None and not self._answers():
            self._arm(HEAD_SECONDS)  # something came that begins no request: it must, soon

    def on_message_begin(self) -> None:
        """Begin to count a head, and its time."""
        super().on_message_begin()
        self._head.begin()
        self._in_head = self._in_message = self._moved_on = True
        cast("dict[str, Any]", self.scope)["extensions"] = {CONNECTION: Seen(self._guard, self._entry)}
        self._arm(HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request line."""
        self._head.url(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head.header(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        self._in_head = False
        self._disarm()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:
            return  # an upgrade
        if not self._entry.known and self.loop.time() - self._entry.began_at > UNKNOWN_SECONDS:
            self.cycle.keep_alive = False
        self.cycle.transport = cast("asyncio.Transport", _Closing(self, self.transport))

    def on_message_complete(self) -> None:
        """Expect the next head."""
        self._in_message = False
        self._in_head = self._moved_on = True
        self._head.begin()
        super().on_message_complete()

    # what goes

    def close_after_answer(self) -> None:
        """Close once the answer is out; at once, if it is not whole."""
        if self.cycle.response_complete:
            self._ends = True
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Go on with the next request, or end."""
        if not self._ends:
            super().on_response_complete()
            if not self._in_message or not self.cycle.response_complete or self._in_head:
                return
            # it was answered before its end, and nothing of the rest is of use
        if self._in_message:
            self._linger()
        else:
            self.transport.close()

    def _upgrade(self) -> None:
        if not self._should_upgrade() or self._answers():
            self._refuse(_BAD_REQUEST)
            return
        path = self.url.partition(b"?")[0].decode("latin-1")
        if (refusal := self._guard.upgrade(path, self.headers)) is not None:
            self._refuse(refusal)
            return
        entry = self._entry
        self._guard.book.know(entry)
        self._connection = None  # it is the WebSocket's from here on
        self._disarm()
        self.handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, GuardedWebSocket):
            protocol.take_over(self._guard.book, entry)
        else:  # the upgrade broke before it was one
            self._guard.book.close(entry)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer, where no other answer is under way, and end."""
        self._guard.note(refusal, self._entry.address)
        if self._answers():
            self.transport.close()
        else:
            self.transport.write(refusal.as_bytes())
            self._linger()

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _linger(self) -> None:
        """End our side, and throw away for a while what still comes: a closed socket would take the answer with it."""
        linger: Linger = KNOWN_LINGER if self._entry.known else STRANGERS_LINGER
        self._left_bytes = linger.most_bytes
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._arm(linger.seconds)

    @property
    def _entry(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the connection is not open")
        return self._connection

    # time

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._due = self.loop.time() + seconds
        self._timer = self.loop.call_later(seconds, self._out_of_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.loop.time() - self._due > LATE_SECONDS:
            self._arm(LATE_SECONDS)  # the server stood still: what came meanwhile is read first
        elif self._left_bytes is not None or not self._in_message:
            self.transport.abort()
        else:
            self._refuse(_SLOW_HEAD)
