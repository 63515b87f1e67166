"""Keeps the ledger and the blobs no larger than the policy allows; at set times, or on request."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import structlog

from coordinator.retention import HistoryPolicy
from farm_server.environment.settings import ServerSettings
from storage.ports.blob_store import BlobStore
from storage.ports.ledger import History, Ledger

_ALL: Final = 2**62
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What was removed, or in a dry run would be."""

    blobs: int
    bytes: int
    rows: int


def history_policy(settings: ServerSettings) -> HistoryPolicy:
    """Return what the settings say is kept of tasks."""
    return HistoryPolicy(
        settings.keep_log_lines, settings.keep_metric_points, settings.keep_events, settings.keep_history_seconds
    )


class Cleaner:
    """One ledger and one store. Everything is done in small steps beside the farm's work."""

    def __init__(self, ledger: Ledger, blobs: BlobStore, settings: ServerSettings) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._settings = settings
        self._policy = history_policy(settings)

    async def clean(self, now: float, *, dry_run: bool = False) -> Cleaned:
        """Prune histories, and remove blobs that nothing needs. ``now`` is on the server's clock. Raises: FarmError."""
        rows = await self.prune(now, dry_run=dry_run)
        referenced = await self._ledger.referenced_digests(now - self._settings.keep_inputs_seconds)
        grace_seconds = self._settings.blob_grace_seconds
        gone = await asyncio.to_thread(self._blobs.collect, referenced, grace_seconds, time.time(), dry_run=dry_run)
        return Cleaned(gone.count, gone.bytes, rows)

    async def prune(self, now: float, *, dry_run: bool = False) -> int:
        """Remove what is too much of each task's history; return how many rows. Raises: FarmError."""
        keep = {
            History.LOGS: self._policy.log_lines,
            History.METRICS: self._policy.metric_points,
            History.EVENTS: self._policy.events,
        }
        rows = 0
        for task in await self._ledger.task_ends():
            is_stale = self._policy.is_stale(task.finished_at, now)
            for history in History:
                upto = _ALL if is_stale else await self._beyond(history, task.task_id, keep.get(history))
                if upto is not None:
                    rows += await self._remove(history, task.task_id, upto, dry_run=dry_run)
        return rows

    async def prune_and_log(self, now: float) -> None:
        """Prune as at set times, and say so. Raises: FarmError."""
        if rows := await self.prune(now):
            _log.info("histories are pruned", rows=rows)

    async def _beyond(self, history: History, task_id: str, keep: int | None) -> int | None:
        return None if keep is None else await self._ledger.beyond(history, task_id, keep)

    async def _remove(self, history: History, task_id: str, upto: int, *, dry_run: bool) -> int:
        if dry_run:
            return await self._ledger.count_upto(history, task_id, upto)
        return await self._ledger.prune(history, task_id, upto)
