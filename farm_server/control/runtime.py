"""The one loop: events go into the coordinator, and its commands are carried out in order.

Events are handled at once, on the event loop. Saves start at once too, but no later command is carried out before
an earlier save is durable: what a client was acknowledged is there after any crash.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from coordinator.commands import Command, ReportDefect, Save
from coordinator.events import Event
from coordinator.records import EventRecord
from farm_server.control.journal import Journal
from farm_server.environment.clock import Clock
from protocol.errors import FarmError, Unavailable

_DURABLE_WITHIN_SECONDS = 10.0
_SETTLED_WITHIN_SECONDS = 5.0
_log = structlog.get_logger(__name__)


class EventHandler(Protocol):
    """The part of the coordinator that the loop needs."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Decide what follows from an event."""


class Runtime:
    """Feeds one coordinator. Use it from the event loop only; threads come in by ``call_soon_threadsafe``.

    ``carry_out`` does every command except ``Save`` and ``ReportDefect``, and must not block.
    """

    def __init__(
        self, coordinator: EventHandler, clock: Clock, journal: Journal, carry_out: Callable[[Command], None]
    ) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._journal = journal
        self._carry_out = carry_out
        self._known_defects: set[str] = set()
        self._queue: deque[Command | asyncio.Future[None]] = deque()
        self._advancing = False

    @property
    def backlog(self) -> int:
        """Count the commands that wait, most of them for the ledger."""
        return len(self._queue)

    def post(self, event: Event) -> None:
        """Handle a fact; what the coordinator refuses is logged, for there is no caller to answer."""
        try:
            self.enqueue(self._coordinator.handle(event, self._clock.now()))
        except FarmError as error:
            _log.warning("event refused", event_type=type(event).__name__, code=error.code, error=error.message)
        except Exception as error:
            # one event that trips over a defect must not take the farm down with it
            message = f"the server has a defect: {type(error).__name__}: {error} (at {type(event).__name__})"
            self._report(ReportDefect(None, f"{message}; see its log", error))

    async def ask(self, event: Event) -> None:
        """Handle a person's request; return once all that the coordinator decided is durable.

        Raises: FarmError from the coordinator, and for a defect that it met in doing so. Unavailable if the ledger
        can't be written.
        """
        if self._journal.failure is not None:
            raise Unavailable(f"{self._journal.failure}; try again when the server's operator has made room")
        commands = self._coordinator.handle(event, self._clock.now())
        saved = self.enqueue(commands)
        if (defect := _defect_of(event, commands)) is not None:
            raise FarmError(defect.message)
        if saved is None:
            return
        try:
            await asyncio.wait_for(asyncio.shield(saved), _DURABLE_WITHIN_SECONDS)
        except TimeoutError:
            raise Unavailable("the request is kept in memory only: the ledger can't be written now") from None

    async def settle(self) -> None:
        """Wait until all that was decided by now is durable; while the ledger can't be written, not for long."""
        saves = [item for item in self._queue if isinstance(item, asyncio.Future)]
        if saves:
            await asyncio.wait(saves[-1:], timeout=_SETTLED_WITHIN_SECONDS)

    def _report(self, defect: ReportDefect) -> None:
        """Make a defect visible: with its traceback in the log, and once as an event."""
        _log.error("the server has a defect", task=defect.task_id, error=defect.message, exc_info=defect.error)
        if defect.message not in self._known_defects:
            self._known_defects.add(defect.message)
            event = EventRecord(self._clock.now(), "server_defect", defect.message, defect.task_id)
            self._journal.submit((), (event,))

    def enqueue(self, commands: Sequence[Command]) -> asyncio.Future[None] | None:
        """Carry out commands in order, after all earlier ones; return the last save's future."""
        saved: asyncio.Future[None] | None = None
        for command in commands:
            if isinstance(command, Save):
                saved = self._journal.submit(command.records, command.entries)
                saved.add_done_callback(self._saved)
                self._queue.append(saved)
            elif isinstance(command, ReportDefect):
                self._report(command)
            else:
                self._queue.append(command)
        self._advance()
        return saved

    def _saved(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled():
            self._advance()

    def _advance(self) -> None:
        """Carry out what waits, up to the first save that is not durable yet."""
        if self._advancing:  # a command's own consequences come after it
            return
        self._advancing = True
        try:
            while self._queue:
                head = self._queue[0]
                if isinstance(head, asyncio.Future):
                    if not head.done():
                        return
                    self._queue.popleft()
                else:
                    self._queue.popleft()
                    self._carry_out_one(head)
        finally:
            self._advancing = False

    def _carry_out_one(self, command: Command) -> None:
        try:
            self._carry_out(command)
        except Exception:
            # the next command still must run: it may belong to another task
            _log.exception("command not carried out", command=type(command).__name__)


def _defect_of(event: Event, commands: Sequence[Command]) -> ReportDefect | None:
    """Return the defect that kept a request from being done, if one did."""
    task_id = getattr(event, "task_id", None)
    return next((c for c in commands if isinstance(c, ReportDefect) and task_id and c.task_id == task_id), None)
