"""A connected client's messages, turned into events: in the order in which one connection brings them."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.events import Event
from coordinator.records import AssignmentRecord
from farm_server.clients.entry_buffer import EntryBuffer
from farm_server.clients.given_work import WorkOf
from farm_server.clients.registry import Peer
from farm_server.clients.results import IncomingResults
from farm_server.clients.translate import event_of
from farm_server.environment.clock import Clock
from protocol.assignments import Progress, Result
from protocol.messages import Bye, Error, Message


class Reception:
    """Tells a client's messages apart. ``in_flight`` asks the coordinator for an assignment."""

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        in_flight: Callable[[str], AssignmentRecord | None],
        results: IncomingResults,
        entries: EntryBuffer,
        clock: Clock,
    ) -> None:
        self._post = post
        self._in_flight = in_flight
        self._results = results
        self._entries = entries
        self._clock = clock

    async def take(self, peer: Peer, message: Message) -> None:
        """Act on one message. Waits only where too many large results are being checked already."""
        match message:
            case Result():
                await self._results.take(peer, self._find(peer, message.assignment_id), message)
            case Error():
                self._results.fail(peer, message)
            case Bye():
                peer.wire.end(f"it {'crashed' if message.crashed else 'left'}: {message.reason or 'goodbye'}")
            case _:
                if isinstance(message, Progress):
                    self._progress(peer, message)
                if (event := event_of(peer, message)) is not None:
                    self._post(event)

    def _progress(self, peer: Peer, message: Progress) -> None:
        """Keep what an assignment's code printed, up to its end: of one that was cancelled that comes after it."""
        if not message.metrics and not message.logs:
            return
        assignment_id = message.progress.assignment_id
        if (work := self._find(peer, assignment_id) or peer.given.find(assignment_id)) is not None:
            self._entries.add(peer, WorkOf(work.task_id, work.round), message, self._clock.now())

    def _find(self, peer: Peer, assignment_id: str) -> AssignmentRecord | None:
        """Return an assignment that is in flight, if it is this client's."""
        found = self._in_flight(assignment_id)
        return found if found is not None and found.client_id == peer.client_id else None
