"""The fair queue of uploads: as many at a time as the server can fold.

Pure: it reads no clock and opens nothing. An upload is named by a text; whoever else sends the same blob shares its
credit. A credit comes back when the upload is released, or brought no byte for ``idle_seconds``, or too few for as long
while others wait. Who waits must ask again and again: a ticket that is not asked for any more is forgotten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Final

from coordinator.allowance import LeastRate
from coordinator.decision import Decision

_NEXT_SECONDS: Final = 0.2
"""How soon the first in the queue asks again; each one behind it so much later."""
_LONGEST_SECONDS: Final = 5.0
FORGET_SECONDS: Final = 3 * _LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class UploadTurn:
    """``ahead`` counts the uploads that are before this one, those under way included; 0 if it may begin."""

    granted: bool
    ahead: int = 0
    retry_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Held:
    """A credit. ``clients`` send the blob, the first one asked for it first; ``rate`` is how fast its bytes come."""

    clients: tuple[str, ...]
    progress_at: float
    rate: LeastRate


@dataclass(frozen=True, slots=True)
class _Ticket:
    """A place in the queue. Tickets are kept in the order of coming, or of their client's last turn if it was later."""

    clients: tuple[str, ...]
    came_at: float
    asked_at: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """One upload of the queue, as people see it."""

    upload: str
    clients: tuple[str, ...]
    came_at: float
    ahead: int
    reason: str


class UploadQueue:
    """Grants credits, first come first served, in turns between clients: many uploads of one do not hold up another.

    A client whose upload gives its credit back comes behind all who waited meanwhile, with whatever else it brings.
    ``capacity`` is how many credits there are. ``now`` is in seconds and never runs backwards.
    """

    def __init__(
        self,
        capacity: int,
        idle_seconds: float,
        forget_seconds: float = FORGET_SECONDS,
        *,
        least_bytes_per_second: float = 0.0,
    ) -> None:
        self._capacity = capacity
        self._idle_seconds = idle_seconds
        self._least_bytes_per_second = least_bytes_per_second
        self._forget_seconds = forget_seconds
        self._held: dict[str, _Held] = {}
        self._tickets: dict[str, _Ticket] = {}

    def ask(self, upload: str, client: str, now: float) -> Decision[UploadTurn]:
        """Give a credit to the upload if it holds one or its turn has come; else its place, and the reason."""
        self.expire(now)
        if (held := self._held.get(upload)) is not None:
            self._held[upload] = replace(held, clients=_with(held.clients, client), progress_at=now)
            return Decision(UploadTurn(granted=True))
        ticket = self._tickets.get(upload) or _Ticket((), now, now)
        self._tickets[upload] = replace(ticket, clients=_with(ticket.clients, client), asked_at=now)
        place = self._queue().index(upload)
        if place < self._capacity - len(self._held):
            rate = LeastRate(self._least_bytes_per_second, self._idle_seconds, now)
            self._held[upload] = _Held(self._tickets.pop(upload).clients, now, rate)
            return Decision(UploadTurn(granted=True))
        ahead = len(self._held) + place
        retry_seconds = min(_NEXT_SECONDS * (place + 1), _LONGEST_SECONDS)
        return Decision(UploadTurn(granted=False, ahead=ahead, retry_seconds=retry_seconds), self._reason(ahead))

    def progress(self, upload: str, now: float, size_bytes: int = 0) -> bool:
        """Note that bytes came; false if the upload holds no credit (any more), and must ask first."""
        held = self._held.get(upload)
        if held is None:
            return False
        held.rate.add(size_bytes, now)
        self._held[upload] = replace(held, progress_at=now)
        return True

    def release(self, upload: str) -> None:
        """Take the credit back, or the ticket: the blob is stored, or will not be."""
        self._tickets.pop(upload, None)
        if (held := self._held.pop(upload, None)) is not None:
            for other in [u for u, ticket in self._tickets.items() if ticket.clients[0] == held.clients[0]]:
                self._tickets[other] = self._tickets.pop(other)

    def expire(self, now: float) -> None:
        """Take back what nobody uses: credits without progress, and tickets that nobody polls.

        While others wait, also the credits of those that trickle: they go on when it is their turn again.
        """
        forgotten = [u for u, ticket in self._tickets.items() if now - ticket.asked_at > self._forget_seconds]
        others_wait = len(forgotten) < len(self._tickets)
        idle = [
            upload
            for upload, held in self._held.items()
            if now - held.progress_at > self._idle_seconds or (others_wait and not held.rate.is_kept(now))
        ]
        for upload in (*idle, *forgotten):
            self.release(upload)

    def forgive(self, seconds: float, now: float) -> None:
        """Leave a time in which the server itself stood still out of every client's silence."""
        for upload, held in self._held.items():
            self._held[upload] = replace(held, progress_at=min(held.progress_at + seconds, now))
            held.rate.forgive(seconds, now)
        for upload, ticket in self._tickets.items():
            self._tickets[upload] = replace(ticket, asked_at=min(ticket.asked_at + seconds, now))

    def clients_of(self, upload: str) -> tuple[str, ...]:
        """Name those who send an upload that holds a credit; nobody if it holds none."""
        held = self._held.get(upload)
        return held.clients if held is not None else ()

    def held(self) -> tuple[str, ...]:
        """Name the uploads that hold a credit."""
        return tuple(self._held)

    def waiting(self) -> list[Waiting]:
        """Return the queue, the next one first."""
        queue = []
        for place, upload in enumerate(self._queue()):
            ticket, ahead = self._tickets[upload], len(self._held) + place
            queue.append(Waiting(upload, ticket.clients, ticket.came_at, ahead, self._reason(ahead)))
        return queue

    def _queue(self) -> list[str]:
        """Order the tickets: a client's first upload comes before any other client's second one."""
        turns = Counter(held.clients[0] for held in self._held.values())
        ranks: dict[str, int] = {}
        for upload, ticket in self._tickets.items():
            ranks[upload] = turns[ticket.clients[0]]
            turns[ticket.clients[0]] += 1
        return sorted(ranks, key=ranks.__getitem__)  # stable: among equals, who waits longest

    def _reason(self, ahead: int) -> str:
        before = "1 upload is" if ahead == 1 else f"{ahead} uploads are"
        return f"{before} before this one; the server folds {self._capacity} at a time"


def _with(clients: tuple[str, ...], client: str) -> tuple[str, ...]:
    return clients if client in clients else (*clients, client)
