"""One WebSocket with its protocol session and a bounded queue of what is still to be written."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from coordinator.allowance import ConnectionAllowance
from farm_server.edge.control_frames import TOO_MANY
from farm_server.observability.wire_counters import WireCounters
from protocol.assignments import Assign
from protocol.errors import TooMany
from protocol.limits import MAX_STRIKES
from protocol.link_capacity import LinkCapacity
from protocol.messages import Message
from protocol.sendqueue import SendQueue
from protocol.session import Session

_FLUSH_SECONDS = 1.0
_MAX_CLOSE_REASON_BYTES = 120


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What one connection may hold unsent, and the largest blob inside a message. Bytes."""

    unsent_bytes: int
    room_bytes: int


class Wire:
    """Sends without waiting and receives in order. A peer that reads too slowly is cut off, and nobody else waits.

    ``over`` is done, with the reason, once the conversation must end.
    """

    def __init__(self, websocket: WebSocket, session: Session, limits: WireLimits, counters: WireCounters) -> None:
        self.session = session
        self._counters = counters
        self._websocket = websocket
        self._max_outbox_bytes = limits.unsent_bytes
        self._max_room_bytes = limits.room_bytes
        self._queue = SendQueue()
        self._capacity = LinkCapacity()
        self._allowance = ConnectionAllowance()
        self._sent_too_much = False
        self.is_flooded = False
        """Whether the peer has sent more than a connection may for a while."""
        self._writing_bytes = 0
        self._last_frame_bytes = 0
        self._unsent = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = self._loop.create_future()

    @property
    def address(self) -> str:
        """Where the connection comes from."""
        return self._websocket.client.host if self._websocket.client is not None else "unknown"

    @property
    def is_over(self) -> bool:
        """Whether the conversation has ended or is about to."""
        return self.over.done()

    @property
    def sent_too_much(self) -> bool:
        """Whether the conversation ended for what the peer sent: bad frames, or more than it may."""
        return self._sent_too_much or self.session.strikes >= MAX_STRIKES

    @property
    def room_bytes(self) -> int:
        """How large a blob may be to ride inside a message now."""
        return self._capacity.at(self._loop.time(), self._max_room_bytes)

    def send(self, message: Message) -> None:
        """Queue a message. Raises: FarmError if the session does not allow it or it is too large."""
        self._queue.put(message, self.session.send(message))
        if isinstance(message, Assign):
            self._allowance.earn()
        self._look_after_queue()

    def end(self, reason: str) -> None:
        """End the conversation for this reason; the first one counts."""
        if not self.over.done():
            self.over.set_result(reason)

    async def receive(self) -> list[Message]:
        """Return the messages of the next frame (none, where it was bad and was answered).

        Who sends more than a connection may is read more slowly, and others get their turn after each frame.
        Raises: WebSocketDisconnect when the connection is gone.
        """
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            self._sent_too_much |= event.get("code") == TOO_MANY
            raise WebSocketDisconnect(event.get("code", 1006), event.get("reason"))
        frame: bytes | str | None = event.get("bytes")
        if frame is None:
            frame = str(event.get("text") or "")
        messages = self.session.receive(frame)
        self._counters.received(len(frame), len(messages))
        verdict = self._allowance.take(self.session.entries, len(frame), self._loop.time())
        self.is_flooded = verdict.is_flood
        if verdict.is_violation:
            self.session.strike(TooMany())
        self._take_answers()
        await asyncio.sleep(verdict.wait_seconds)
        return messages

    async def converse(self, reader: Coroutine[None, None, None]) -> str:
        """Write the outbox and run ``reader`` until one of them fails or ``end`` is called; return the reason."""
        reading = asyncio.create_task(reader)
        writing = asyncio.create_task(self._write())
        try:
            ends: set[asyncio.Future[Any]] = {reading, writing, self.over}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.cancelled() and (error := reading.exception()) is not None:
                self.end(_broken(error))
                if not isinstance(error, WebSocketDisconnect):
                    raise error
            self.end("the connection broke")
            return self.over.result()
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def flush(self) -> None:
        """Write what is queued; waits as long as the peer does not read."""
        while (packed := self._queue.next_frame(self.session.batch_bytes)) is not None:
            self._writing_bytes = len(packed.frame)
            began_at = self._loop.time()
            try:
                await self._websocket.send_bytes(packed.frame)
            finally:
                self._writing_bytes = 0
            # uvicorn returns at once, and lets the next frame wait until this one has left
            now = self._loop.time()
            self._capacity.written(self._last_frame_bytes, now - began_at, now)
            self._last_frame_bytes = len(packed.frame)
            self._counters.sent(len(packed.frame), packed.messages)

    async def close(self) -> None:
        """Write what is queued, if the peer takes it at once, and close."""
        self._take_answers()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self.flush()
                reason = self.session.close_reason.encode()[:_MAX_CLOSE_REASON_BYTES].decode(errors="ignore")
                await self._websocket.close(self.session.close_code, reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            return  # the peer is gone or does not read: there is nobody to say goodbye to

    def _take_answers(self) -> None:
        for answer in self.session.outgoing():
            self._queue.answer(answer, last=self.session.closed)
            self._look_after_queue()

    def _look_after_queue(self) -> None:
        """Wake the writer, or give the peer up for whom too much waits."""
        if self._queue.waiting_bytes + self._writing_bytes > self._max_outbox_bytes:
            self._queue.clear()
            self.end(f"it reads too slowly: more than {self._max_outbox_bytes} bytes were unsent")
        self._unsent.set()

    async def _write(self) -> None:
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            await self.flush()


def _broken(error: BaseException) -> str:
    if isinstance(error, WebSocketDisconnect):
        detail = f" (code {error.code}{': ' + error.reason if error.reason else ''})"
        return f"the connection closed{detail}"
    return "the connection broke"
