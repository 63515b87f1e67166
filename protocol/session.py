"""One side of a conversation, sans I/O: frames in, messages out; messages in, frames out.

    CONNECTING --hello--> GREETING --welcome--> OPEN --bye or a fatal error--> CLOSED

A move that is missing from ``SENDS`` is illegal. Draining is no state of its own: the two directions are not
synchronised, so an ``assign`` may cross a ``drain`` on the wire and must stay legal; the client rejects it.

The shell around it is a loop:

    for message in session.receive(frame): ...act on it, answering with queue.put(reply, session.send(reply))
    for answer in session.outgoing(): queue.answer(answer)
    while packed := queue.next_frame(session.batch_bytes): write(packed.frame)
    if session.closed: close the WebSocket with session.close_code and session.close_reason
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from protocol.codec import decode_entry, encode, split
from protocol.errors import (
    FarmError,
    MalformedFrame,
    OutOfOrder,
    OversizedFrame,
    ProtocolError,
    UnknownMessage,
    VersionMismatch,
)
from protocol.limits import MAX_BATCH_BYTES, MAX_CLIENT_DEPTH, MAX_CLIENT_VALUES, MAX_FRAME_BYTES, MAX_STRIKES
from protocol.messages import Bye, Error, Hello, Message, Scope, Welcome
from protocol.packing import check_shape
from protocol.versions import BATCHES_SINCE, SUPPORTED, negotiate

MAX_ERROR_CHARS: Final = 1000
"""An error answer's message is cut here: it may quote what the peer sent."""


class Side(StrEnum):
    """Which end of the connection a session is."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> Side:
        """Return the far end."""
        return Side.SERVER if self is Side.CLIENT else Side.CLIENT


class SessionState(StrEnum):
    """How far the conversation is."""

    CONNECTING = "connecting"
    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


_CLIENT_OPEN: Final = frozenset(
    {"heartbeat", "ready", "accept", "reject", "progress", "result", "error", "pause", "resume", "drain", "bye"}
) | {"sealed_shares", "revealed"}
_SERVER_OPEN: Final = frozenset(
    {"assign", "prefetch", "ack", "cancel", "pace", "error", "pause", "resume", "drain", "bye"}
) | {"round_keys", "peer_shares", "survivors"}

SENDS: Final[Mapping[SessionState, Mapping[Side, frozenset[str]]]] = MappingProxyType(
    {
        SessionState.CONNECTING: {
            Side.CLIENT: frozenset({"hello", "error", "bye"}),
            Side.SERVER: frozenset({"error", "bye"}),
        },
        SessionState.GREETING: {
            Side.CLIENT: frozenset({"error", "bye"}),
            Side.SERVER: frozenset({"welcome", "error", "bye"}),
        },
        SessionState.OPEN: {Side.CLIENT: _CLIENT_OPEN, Side.SERVER: _SERVER_OPEN},
        SessionState.CLOSED: {Side.CLIENT: frozenset(), Side.SERVER: frozenset()},
    }
)
"""Which message types each side may send in each state."""
SINCE: Final[Mapping[str, int]] = MappingProxyType({"pace": BATCHES_SINCE, "prefetch": BATCHES_SINCE})
"""Message types that older versions do not know, and the version that brought them."""


class Session:
    """The protocol's rules for one connection; a new connection needs a new session.

    ``version`` is None until both sides agreed; ``max_frame_bytes`` falls to the welcome's value where that is lower.
    """

    def __init__(self, side: Side, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.side = side
        self.state = SessionState.CONNECTING
        self.version: int | None = None
        self.max_frame_bytes = max_frame_bytes
        self.strikes = 0
        self.entries = 0
        """How many messages the last frame held, good or bad; at least 1."""
        self.error: FarmError | None = None
        """Why this side closed the session; None after a bye or when the peer closed it."""
        self._is_large = False
        self._offered: tuple[int, ...] = ()
        self._outgoing: list[bytes] = []

    @property
    def closed(self) -> bool:
        """Whether the conversation is over: write what is outgoing, then close the connection."""
        return self.state is SessionState.CLOSED

    @property
    def close_code(self) -> int:
        """The WebSocket close code to use: 1000 (normal), 1002 (protocol error) or 1008 (refused by the shell)."""
        if self.error is None:
            return 1000
        return 1002 if isinstance(self.error, ProtocolError) else 1008

    @property
    def close_reason(self) -> str:
        """The WebSocket close reason to use: the error's code, or nothing."""
        return self.error.code if self.error else ""

    @property
    def batch_bytes(self) -> int:
        """How long a frame with several messages may be; 0 where the peer knows none."""
        return min(MAX_BATCH_BYTES, self.max_frame_bytes) if self._knows_batches else 0

    @property
    def _knows_batches(self) -> bool:
        return self.version is not None and self.version >= BATCHES_SINCE

    def may_send(self, message_type: str) -> bool:
        """Whether ``send`` would take a message of this type now."""
        return message_type in SENDS[self.state][self.side] and (self.version or 0) >= SINCE.get(message_type, 0)

    def send(self, message: Message) -> bytes:
        """Return the frame to write for ``message``.

        Raises: OutOfOrder if this side may not send it now (after the end: nothing); OversizedFrame if it is over the
            negotiated limit; MalformedFrame if it has no msgpack form. The session is as it was before.
        """
        if not self.may_send(message.type):
            raise OutOfOrder(self._complaint(message, self.side))
        frame = encode(message)
        limit = (
            min(self.max_frame_bytes, message.max_frame_bytes) if isinstance(message, Welcome) else self.max_frame_bytes
        )
        if len(frame) > limit:
            raise OversizedFrame(f"this {message.type} has {len(frame)} bytes and the limit is {limit}; use /v1/blobs")
        self._advance(message)
        return frame

    def receive(self, frame: bytes | str) -> list[Message]:
        """Take one WebSocket message and return the messages for the shell; several where the frame is a batch.

        A batch means what its messages mean in frames of their own: each bad one is answered, the others count.

        Never raises for what the peer did: a bad frame queues a typed error answer (see ``outgoing``); after
        ``MAX_STRIKES`` of them, or without a common version, the answer is fatal and the session closed. An unknown
        message type is answered and costs no strike, so that a newer peer is not thrown out, unless its frame is
        larger than a batch may be. Once closed, frames that were still on their way are ignored.
        """
        if self.closed:
            return []
        self.entries = 1
        try:
            entries = self._entries(frame)
        except ProtocolError as error:
            self._answer(error)
            return []
        self.entries = len(entries)
        self._is_large = len(frame) > MAX_BATCH_BYTES
        return [message for entry in entries if (message := self._take(entry)) is not None]

    def outgoing(self) -> list[bytes]:
        """Return and clear the frames that the session itself wants written."""
        frames, self._outgoing = self._outgoing, []
        return frames

    def strike(self, error: ProtocolError) -> None:
        """Answer what the shell sees as a violation, like a bad frame: ``MAX_STRIKES`` of both close the session."""
        self._answer(error)

    def fail(self, error: FarmError) -> None:
        """Queue ``error`` as a fatal answer and close: for refusals that the shell decides (a wrong secret)."""
        self._queue_error(error, fatal=True)

    def _entries(self, frame: bytes | str) -> list[object]:
        if isinstance(frame, str):
            raise MalformedFrame("this is a text frame; send binary frames of msgpack")
        if self.side is Side.SERVER and len(frame) <= self.max_frame_bytes:
            check_shape(frame, MAX_CLIENT_VALUES, MAX_CLIENT_DEPTH)
        return split(frame, self.max_frame_bytes, batches=self._knows_batches)

    def _take(self, entry: object) -> Message | None:
        """Return the message of one entry, if it is good and the conversation is not over."""
        if self.closed:
            return None
        try:
            message = decode_entry(entry)
            if message.type not in SENDS[self.state][self.side.other]:
                raise OutOfOrder(self._complaint(message, self.side.other))
            self._advance(message)
        except ProtocolError as error:
            self._answer(error)
            return None
        return message

    def _advance(self, message: Message) -> None:
        match message:
            case Hello():
                if self.side is Side.SERVER:
                    self.version = negotiate(message.versions)
                self._offered = message.versions
                self.state = SessionState.GREETING
            case Welcome():
                self._agree(message)
                self.state = SessionState.OPEN
            case Bye() | Error(fatal=True):
                self.state = SessionState.CLOSED

    def _agree(self, welcome: Welcome) -> None:
        if welcome.version not in self._offered or welcome.version not in SUPPORTED:
            raise VersionMismatch(f"the welcome names version {welcome.version}, which the hello did not offer")
        self.version = welcome.version
        self.max_frame_bytes = min(self.max_frame_bytes, welcome.max_frame_bytes)

    def _answer(self, error: ProtocolError) -> None:
        self.strikes += self._is_large or not isinstance(error, UnknownMessage)
        self._queue_error(error, fatal=isinstance(error, VersionMismatch) or self.strikes >= MAX_STRIKES)

    def _queue_error(self, error: FarmError, *, fatal: bool) -> None:
        if self.closed:
            return
        answer = Error(code=error.code, message=error.message[:MAX_ERROR_CHARS], scope=Scope.HERE, fatal=fatal)
        self._outgoing.append(encode(answer))
        if fatal:
            self.error = error
            self.state = SessionState.CLOSED

    def _complaint(self, message: Message, sender: Side) -> str:
        legal = ", ".join(sorted(SENDS[self.state][sender])) or "nothing"
        return f"{message.type} is not legal from the {sender} while {self.state}; legal: {legal}"
