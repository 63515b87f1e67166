"""Gathers what clients report of their assignments (metrics, log lines) into few transactions.

They are no facts that a restart depends on: they never go through the coordinator, and what the ledger refuses is
dropped with a warning rather than hold anything up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from coordinator.records import Entry, LogRecord, MetricRecord
from farm_server.journal import Saver
from farm_server.placements import Placement
from farm_server.registry import Peer
from protocol.errors import FarmError
from protocol.messages import Progress

_MAX_WAITING = 50_000
_log = structlog.get_logger(__name__)


class EntryBuffer:
    """On the event loop. ``flush`` is called a few times a second."""

    def __init__(self, ledger: Saver, on_saved: Callable[[Sequence[Entry]], None]) -> None:
        self._ledger = ledger
        self._on_saved = on_saved
        self._waiting: list[Entry] = []
        self._in_flight: asyncio.Future[None] | None = None

    def add(self, peer: Peer, placement: Placement, progress: Progress, now: float) -> None:
        """Take the metrics and log lines of a progress message."""
        if len(self._waiting) > _MAX_WAITING:
            _log.warning("log lines and metrics are dropped: the ledger is too slow", client=peer.name)
            return
        task, number = placement.task_id, placement.round
        self._waiting += [
            MetricRecord(now, task, number, m.step, m.name, m.value, "client", peer.client_id) for m in progress.metrics
        ]
        self._waiting += [
            LogRecord(now, task, peer.client_id, peer.name, number, line.stream, line.text) for line in progress.logs
        ]

    def flush(self) -> None:
        """Write what waits, unless the last write is still under way."""
        if not self._waiting or (self._in_flight is not None and not self._in_flight.done()):
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
        else:
            reason = error.message if isinstance(error, FarmError) else str(error)
            _log.warning("log lines and metrics are dropped", entries=len(entries), error=reason)
