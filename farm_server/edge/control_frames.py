"""uvicorn's WebSocket protocol, for peers that send control frames without end.

What carries a message waits in a queue, and the socket is not read meanwhile. Pings, pongs and fragments reach nobody
but the protocol itself, which answers each ping at once: so they are counted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

from coordinator.allowance import Bucket

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

TOO_MANY: Final = 1008
"""The close code for a peer that sends too much."""
_BROKE_PROTOCOL: Final = 1002
TOO_MANY_REASON: Final = "too many control frames"
CONTROL_PER_SECOND: Final = 64.0
CONTROL_BURST: Final = 256.0
"""Pings, pongs and fragments of one connection; a client pings once in 20 s."""
_PIECE_BYTES: Final = 16 * 1024
"""Parsed at once: what a flood costs before it is noticed."""
_UNREAD_BYTES: Final = 1024 * 1024
"""With so much written and not read, a ping is not answered any more."""
_LINGER_SECONDS: Final = 1.0
_COUNTED: Final = frozenset({Opcode.PING, Opcode.PONG, Opcode.CONT})


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """Closes with 1008 who sends more control frames than anybody needs."""

    def connection_made(self, transport: object) -> None:
        """Begin a connection."""
        self._control = Bucket(CONTROL_PER_SECOND, CONTROL_BURST)
        self._given_up = False
        super().connection_made(transport)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Take what the socket brought, piece by piece; nothing more from a peer that was given up."""
        for start in range(0, len(data), _PIECE_BYTES):
            if self._given_up:
                return
            super().data_received(data[start : start + _PIECE_BYTES])

    def handle_events(self) -> None:
        """Count the control frames, then let the protocol handle what came."""
        counted = sum(isinstance(event, Frame) and event.opcode in _COUNTED for event in self.conn.events)
        if counted and not self._may_go_on(counted):
            self._give_up()
        else:
            super().handle_events()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; who is thrown out for what it sent (1002) is not read to the end of its flood."""
        await super().send(message)
        if message["type"] == "websocket.close" and message.get("code") == _BROKE_PROTOCOL and not self._given_up:
            self._given_up = True
            self._stop_reading()

    def _stop_reading(self) -> None:
        """Leave unread what still comes, and cut the connection when the last word has had time to arrive."""
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _may_go_on(self, counted: int) -> bool:
        """Whether so many control frames are within bounds, and the peer reads what it is answered."""
        reads = self.transport.get_write_buffer_size() <= _UNREAD_BYTES
        return self._control.try_take(counted, self.loop.time()) and reads

    def _give_up(self) -> None:
        """Close, without an answer to its last frame; a peer that does not even read the reason is cut off soon."""
        self._given_up = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": TOO_MANY, "reason": TOO_MANY_REASON})
        self.conn.data_to_send()  # its pongs
        self.conn.fail(TOO_MANY, TOO_MANY_REASON)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._stop_reading()
