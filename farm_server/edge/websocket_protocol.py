"""uvicorn's WebSocket protocol: it leaves the table of connections at its end, and answers a handshake that is none."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from farm_server.edge.connections import Connection, ConnectionBook
from farm_server.edge.control_frames import BoundedWebSocket
from farm_server.edge.refusal import Refusal

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

_NO_HANDSHAKE = Refusal(HTTPStatus.BAD_REQUEST, "bad_request", "this is no WebSocket handshake")


class GuardedWebSocket(BoundedWebSocket):
    """One WebSocket connection."""

    _book: ConnectionBook | None = None
    _connection: Connection | None = None

    def take_over(self, book: ConnectionBook, connection: Connection) -> None:
        """Stand in the book for the connection from here on."""
        self._book, self._connection = book, connection
        connection.owner = self
        if self.disconnected:
            book.close(connection)

    def drop(self) -> None:
        """Close at once."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the book."""
        super().connection_lost(exc)
        if self._book is not None and self._connection is not None:
            self._book.close(self._connection)

    def handle_parser_exception(self) -> None:
        """Answer what can't be parsed: by HTTP as long as there is no WebSocket, or it would have no answer at all."""
        if self.handshake_initiated:
            super().handle_parser_exception()
            return
        self.close_sent = self.handshake_complete = True
        self.transport.write(_NO_HANDSHAKE.as_bytes())
        self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; a handshake that the application has refused is complete, and no fault of the application's."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True
