"""Gathers what clients report of their assignments (metrics, log lines) into few transactions.

They are no facts that a restart depends on: they never go through the coordinator, and what the ledger refuses, or the
disk has no room for, is dropped with a warning rather than hold anything up. How much is kept says
``coordinator.allowance``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from coordinator.allowance import OutputBudgets
from coordinator.lifecycle import ENDED
from coordinator.records import Entry, LogRecord, MetricRecord, Record, TaskRecord
from farm_server.clients.given_work import WorkOf
from farm_server.clients.registry import Peer
from farm_server.control.journal import Saver
from protocol.assignments import Progress
from protocol.errors import FarmError, Unavailable

_REMOVED_KNOWN: Final = 1000
"""Tasks that were removed lately; their clients are told at once, and send little more."""
_MAX_WAITING = 50_000
_log = structlog.get_logger(__name__)


class EntryBuffer:
    """On the event loop. ``flush`` is called a few times a second.

    While ``lacks`` says why the disk takes no more, entries wait, and beyond a number are dropped.
    """

    def __init__(
        self, ledger: Saver, on_saved: Callable[[Sequence[Entry]], None], lacks: Callable[[], str | None]
    ) -> None:
        self._ledger = ledger
        self._on_saved = on_saved
        self._lacks = lacks
        self._budgets = OutputBudgets()
        self._waiting: list[Entry] = []
        self._removed: dict[str, None] = {}
        self._is_full = False
        self._in_flight: asyncio.Future[None] | None = None

    def forget(self, task_id: str) -> None:
        """Drop what waits of a task that is being removed, and what its clients still send of it."""
        self._waiting = [entry for entry in self._waiting if entry.task_id != task_id]
        self._removed[task_id] = None
        if len(self._removed) > _REMOVED_KNOWN:
            del self._removed[next(iter(self._removed))]

    def add(self, peer: Peer, work: WorkOf, progress: Progress, now: float) -> None:
        """Take the metrics and log lines of a progress message, as far as the budgets allow."""
        if work.task_id in self._removed:
            return
        if len(self._waiting) > _MAX_WAITING:
            if not self._is_full:
                reason = self._lacks() or "the ledger is too slow"
                _log.warning("log lines and metrics are dropped", client=peer.name, error=reason)
            self._is_full = True
            return
        self._is_full = False
        client, task, number = peer.client_id, work.task_id, work.round
        self._waiting += [
            MetricRecord(now, task, number, m.step, m.name, m.value, "client", client)
            for m in progress.metrics
            if self._budgets.takes_point(client, task, m.name, now)
        ]
        self._waiting += [
            LogRecord(now, task, client, peer.name, number, line.stream, line.text)
            for line in progress.logs
            if self._budgets.takes_line(client, task, len(line.text.encode(errors="replace")), now)
        ]

    def flush_before(self, records: Sequence[Record]) -> None:
        """Write what waits before a task's end is written: who sees the end finds all that was printed by then."""
        if self._waiting and any(isinstance(record, TaskRecord) and record.state in ENDED for record in records):
            self._write()

    def flush(self, now: float) -> None:
        """Write what waits, unless the last write is still under way."""
        self._waiting += [
            LogRecord(now, task_id, client_id, "server", 0, "agent", f"{client_id[:8]}: {line}")
            for client_id, task_id, line in self._budgets.notes(now)
        ]
        is_writing = self._in_flight is not None and not self._in_flight.done()
        if self._waiting and not is_writing:
            self._write()

    def _write(self) -> None:
        if self._lacks() is not None:
            return
        entries, self._waiting = self._waiting, []
        self._in_flight = self._ledger.submit((), entries)
        self._in_flight.add_done_callback(lambda done: self._written(done, entries))

    def _written(self, done: asyncio.Future[None], entries: Sequence[Entry]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self._on_saved(entries)
        elif len(entries) > 1 and not isinstance(error, Unavailable):
            self._write_apart(entries)
        else:
            reason = error.message if isinstance(error, FarmError) else str(error)
            _log.warning("log lines and metrics are dropped", entries=len(entries), error=reason)

    def _write_apart(self, entries: Sequence[Entry]) -> None:
        """Write each by itself: what one of them is refused for must not cost the others."""
        for entry in entries:
            saved = self._ledger.submit((), [entry])
            saved.add_done_callback(lambda done, entry=entry: self._written(done, [entry]))  # type: ignore[misc]
