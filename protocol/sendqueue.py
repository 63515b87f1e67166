"""What waits to be written to one connection: small messages share frames, and control overtakes bulk. Sans I/O.

A frame that is being written cannot be interrupted; all that waits behind it can be put in a better order. Orders and
heartbeats are urgent: they go before whatever else waits. Everything else keeps its order, for in that order it has its
meaning (a ``ready`` after a ``result`` counts a slot that the result has freed).

An urgent message that makes a waiting one pointless takes it out of the queue: ``cancel`` and ``pause`` the ``assign``
that they are about, ``bye`` all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from protocol.assignments import Assign, Cancel
from protocol.codec import join
from protocol.limits import MAX_BATCH_MESSAGES
from protocol.messages import Bye, Message, Pause

URGENT: Final = frozenset({"welcome", "heartbeat", "pace", "ack", "cancel", "pause", "resume", "drain", "bye"})
"""Types that overtake; a welcome has nothing to overtake, but must not be overtaken itself.

It also has a frame of its own: who has not read it does not know yet that batches are spoken.
"""
_HEADER_BYTES: Final = 5
"""The longest msgpack list header."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One WebSocket message to write, and how many of ours it holds."""

    frame: bytes
    messages: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    body: bytes
    assignment_id: str | None = None
    task_id: str | None = None
    """Both of an ``assign`` only."""
    alone: bool = False


class SendQueue:
    """Messages on their way out, each encoded already by ``Session.send``."""

    def __init__(self) -> None:
        self._urgent: deque[_Waiting] = deque()
        self._ordered: deque[_Waiting] = deque()
        self.waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ordered)

    def put(self, message: Message, body: bytes) -> None:
        """Queue a message that ``body`` encodes."""
        if message.type in URGENT:
            self._revoke(message)
            self._add(self._urgent, _Waiting(body, alone=message.type == "welcome"))
        else:
            self._add(self._ordered, _waiting(message, body))

    def answer(self, body: bytes, *, last: bool) -> None:
        """Queue what the session itself says, complaints about bad frames: they wait for nothing.

        After the ``last`` word the peer listens to nothing: what has not begun is dropped.
        """
        if last:
            self._keep(lambda _: False)
        self._add(self._urgent, _Waiting(body))

    def next_frame(self, batch_bytes: int) -> Packed | None:
        """Return the next frame and forget what it holds; None while nothing waits.

        ``batch_bytes``: the longest frame that may hold several messages; a longer message has a frame of its own.
        """
        bodies: list[bytes] = []
        room = batch_bytes - _HEADER_BYTES
        while (lane := self._urgent or self._ordered) and len(bodies) < MAX_BATCH_MESSAGES:
            if bodies and (lane[0].alone or len(lane[0].body) > room):
                break
            taken = lane.popleft()
            bodies.append(taken.body)
            room -= batch_bytes if taken.alone else len(taken.body)
        self.waiting_bytes -= sum(map(len, bodies))
        return Packed(join(bodies), len(bodies)) if bodies else None

    def clear(self) -> None:
        """Drop all that waits."""
        self._urgent.clear()
        self._ordered.clear()
        self.waiting_bytes = 0

    def _add(self, lane: deque[_Waiting], waiting: _Waiting) -> None:
        lane.append(waiting)
        self.waiting_bytes += len(waiting.body)

    def _revoke(self, message: Message) -> None:
        match message:
            case Bye():
                self._keep(lambda _: False)
            case Cancel():
                self._keep(lambda waiting: waiting.assignment_id != message.assignment_id)
            case Pause(task_id=None):
                self._keep(lambda waiting: waiting.assignment_id is None)
            case Pause():
                self._keep(lambda waiting: waiting.task_id != message.task_id)

    def _keep(self, wanted: Callable[[_Waiting], bool]) -> None:
        kept = [waiting for waiting in self._ordered if wanted(waiting)]
        if len(kept) < len(self._ordered):
            self.waiting_bytes -= sum(len(w.body) for w in self._ordered) - sum(len(w.body) for w in kept)
            self._ordered = deque(kept)


def _waiting(message: Message, body: bytes) -> _Waiting:
    return (
        _Waiting(body, message.assignment_id, message.task.task_id) if isinstance(message, Assign) else _Waiting(body)
    )
