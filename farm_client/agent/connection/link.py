"""One connection to the farm, from hello to goodbye: the WebSocket around a ``protocol.session``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from farm_client.agent.connection.address import JoinAddress
from farm_client.agent.connection.dialing import PING_SECONDS, dial, explain
from farm_client.agent.connection.heartbeat_interval import HeartbeatIntervals
from farm_client.agent.connection.unacknowledged import Report, Unacknowledged
from farm_client.agent.errors import Displaced, OutOfReach
from protocol.assignments import Progress, Reject
from protocol.codec import decode
from protocol.errors import FarmError, IdentityInUse, OversizedFrame, Unauthorized, VersionMismatch
from protocol.limits import MAX_FRAME_BYTES
from protocol.link_capacity import LinkCapacity
from protocol.messages import Bye, Error, Heartbeat, Hello, Message, Pace, Welcome
from protocol.sendqueue import SendQueue
from protocol.session import Session, Side

_OPEN_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 1.0
_MAX_BACKLOG: Final = 64
_SHORT_CHARS: Final = 500
LEAST_FRAME_BYTES: Final = 64 * 1024
"""No server can be set to less: what a client must be able to say fits."""
_FINAL_ERRORS: Final = {error.code: error for error in (Unauthorized, VersionMismatch)}


class Link:
    """An open connection. Made by ``open_link``; iterate over ``messages`` until it ends."""

    def __init__(self, websocket: ClientConnection, session: Session, welcome: Welcome, capacity: LinkCapacity) -> None:
        self.welcome = welcome
        self.farewell = ""
        """Why the farm ended the conversation, if it said so."""
        self._displaced = False
        self._websocket = websocket
        self._session = session
        self._queue = SendQueue()
        self._capacity = capacity
        self._intervals = HeartbeatIntervals.told(welcome)
        self._unacknowledged = Unacknowledged()
        self._wake = asyncio.Event()
        self._writer = asyncio.get_running_loop().create_task(self._write())

    @property
    def reason(self) -> OutOfReach:
        """Why it ended."""
        return Displaced() if self._displaced else OutOfReach(self.farewell or "the connection ended")

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that what can be left out should be."""
        return len(self._queue) > _MAX_BACKLOG

    @property
    def round_trip_seconds(self) -> float:
        """Return how long the newest ping took; 0 before the first one, and where the clock is too coarse to tell."""
        return self._websocket.latency

    @property
    def room_bytes(self) -> int:
        """How large an update may be to ride inside a message now."""
        return self._capacity.at(time.monotonic(), self.welcome.inline_bytes)

    def post(self, message: Message) -> None:
        """Queue a message without waiting; on a link that has ended it is dropped.

        One that is too long for this farm is said in shorter frames.
        Raises: ProtocolError if the message breaks the protocol: a mistake of this side.
        """
        if self._session.closed:
            return
        if isinstance(message, Heartbeat):
            self._ping_as_often(is_idle=not message.assignments)
        try:
            frame = self._session.send(message)
        except OversizedFrame:
            if (shorter := shortened(message)) is None:
                raise
            for part in shorter:
                self.post(part)
        else:
            self._queue.put(message, frame)
            self._wake.set()

    def tell(self, message: Report) -> None:
        """Post a message that must not go down with the connection: see ``unacknowledged``."""
        self._unacknowledged.add(message)
        self.post(message)

    def unacknowledged(self) -> list[Report]:
        """Return the reports that are not proven to have arrived: a pong after it proves that the farm has read it.

        Being with the operating system proves nothing: a connection that dies takes along what is under way.
        """
        return self._unacknowledged.messages()

    def cut(self) -> None:
        """Break the connection without a word, as a network does."""
        self._websocket.transport.abort()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield the farm's messages until either side ends the conversation."""
        try:
            async for frame in self._websocket:
                for message in self._session.receive(frame):
                    if isinstance(message, Pace):
                        self._intervals = HeartbeatIntervals.told(message)
                    if isinstance(message, Bye) or (isinstance(message, Error) and message.fatal):
                        self.farewell = message.reason if isinstance(message, Bye) else message.message
                        self._displaced = isinstance(message, Bye) and message.replaced
                    yield message
                for answer in self._session.outgoing():
                    self._queue.answer(answer, last=self._session.closed)
                    self._wake.set()
                if self._session.closed:
                    if (error := self._session.error) is not None:
                        self.farewell = self.farewell or f"the farm broke the protocol: {error.message}"
                    return
        except ConnectionClosed as closed:
            self.farewell = self.farewell or f"the connection broke: {closed}"

    def _ping_as_often(self, *, is_idle: bool) -> None:
        """Ping no more often than an idle client beats: in a crowd that is most of a farm's traffic."""
        longest = self._intervals.idle_heartbeat_seconds if is_idle else 0.0
        self._websocket.ping_interval = max(PING_SECONDS, longest)

    async def close(self, bye: Bye | None = None) -> None:
        """End the conversation, with a last word if one is given; takes at most about three seconds."""
        await self._flush_briefly()  # what waits now goes before the last word, after which nothing counts
        if bye is not None:
            self.post(bye)
            await self._flush_briefly()
        self._writer.cancel()
        with suppress(Exception):  # it is over in any case
            await self._websocket.close(self._session.close_code, self._session.close_reason)

    async def _flush_briefly(self) -> None:
        with suppress(Exception):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._flush()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._flush()
        except ConnectionClosed:
            return  # the reader tells; nobody waits for what is left
        except Exception as error:  # a link that does not write must not stay open
            self.farewell = self.farewell or f"the connection broke: {error!r}"
            self.cut()

    async def _flush(self) -> None:
        while (packed := self._queue.next_frame(self._session.batch_bytes)) is not None:
            began_at = time.monotonic()
            try:
                await self._websocket.send(packed.frame)
            finally:
                now = time.monotonic()
                self._capacity.written(len(packed.frame), now - began_at, now)
        if (number := self._unacknowledged.ask()) is not None:
            pong = asyncio.ensure_future(await self._websocket.ping())
            pong.add_done_callback(partial(self._on_pong, number))

    def _on_pong(self, number: int, pong: asyncio.Future[float]) -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._unacknowledged.proven(number)


async def open_link(address: JoinAddress, hello: Hello, capacity: LinkCapacity) -> Link:
    """Connect, say hello, and wait for the welcome.

    ``capacity`` outlives connections: a farm that lost this client behind a frame that was too long for its link must
    not be sent the same one again.

    Raises: Unauthorized, VersionMismatch and BadAddress, which no second try mends; OutOfReach for the rest, of which
        NotAFarm is a wrong address to who was never welcomed there.
    """
    try:
        async with asyncio.timeout(_OPEN_SECONDS):
            websocket = await dial(address)
            try:
                return await _greet(websocket, hello, capacity)
            except BaseException:
                websocket.transport.abort()  # to wait for its goodbye would cost the time that is left
                raise
    except FarmError:
        raise
    except Exception as error:  # whatever a network brings: nothing of it may end an agent
        raise explain(error, address) from error


async def _greet(websocket: ClientConnection, hello: Hello, capacity: LinkCapacity) -> Link:
    session = Session(Side.CLIENT)
    await websocket.send(session.send(hello))
    while not session.closed:
        for message in session.receive(await websocket.recv()):
            if isinstance(message, Welcome):
                return Link(websocket, session, sane(message), capacity)
            if isinstance(message, Error) and message.code == IdentityInUse.code:
                raise Displaced
            if isinstance(message, Error):
                raise _FINAL_ERRORS.get(message.code, OutOfReach)(message.message)
            if isinstance(message, Bye):
                raise OutOfReach(f"the farm said goodbye: {message.reason or 'no reason given'}")
        if session.strikes:
            break
    answers = [message for frame in session.outgoing() if isinstance(message := decode(frame), Error)]
    why = answers[-1].message if answers else "it says nothing that this version understands"
    raise OutOfReach(f"the farm's greeting cannot be used: {why}")


def sane(welcome: Welcome) -> Welcome:
    """Return a welcome whose sizes this client can keep to. Raises: OutOfReach if nothing could be said."""
    if welcome.max_frame_bytes < LEAST_FRAME_BYTES:
        raise OutOfReach(
            f"the farm allows frames of {welcome.max_frame_bytes} bytes; no client can speak in fewer than "
            f"{LEAST_FRAME_BYTES}"
        )
    most_bytes = min(welcome.max_frame_bytes, MAX_FRAME_BYTES) // 2
    return welcome.model_copy(update={"inline_bytes": min(max(0, welcome.inline_bytes), most_bytes)})


def shortened(message: Message) -> list[Message] | None:
    """Return messages that say the same, or its most important part, in shorter frames; None if it is short already."""
    match message:
        case Progress(logs=logs, metrics=metrics) if len(logs) + len(metrics) > 1:
            halves = (slice(None, (len(logs) + 1) // 2), slice(None, len(metrics) // 2))
            rest = (slice(halves[0].stop, None), slice(halves[1].stop, None))
            return [
                message.model_copy(update={"logs": logs[of_logs], "metrics": metrics[of_metrics]})
                for of_logs, of_metrics in (halves, rest)
            ]
        case Error(traceback=str()):
            return [message.model_copy(update={"traceback": None})]
        case Error(message=text) | Reject(message=text) if len(text) > _SHORT_CHARS:
            return [message.model_copy(update={"message": text[:_SHORT_CHARS]})]
    return None
