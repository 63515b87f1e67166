"""What must happen from time to time: ticks, silence, superseded checkpoints, unreferenced blobs."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import structlog

from coordinator.records import CheckpointRecord
from farm_server.settings import ServerSettings
from protocol.errors import FarmError, NotFound
from protocol.limits import INLINE_BYTES
from storage.blobs import FolderBlobStore
from storage.ledger import Ledger

_log = structlog.get_logger(__name__)


async def every(seconds: float, work: Callable[[], Awaitable[None]], what: str) -> None:
    """Do ``work`` again and again, ``seconds`` apart; a failure is logged, and the next time is another chance."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except FarmError as error:
            _log.warning(f"{what} failed", code=error.code, error=error.message)
        except Exception:
            _log.exception(f"{what} failed")


class Retention:
    """Drops the checkpoints that a task has too many of, and their files.

    Kept are each task's newest ``keep_checkpoints``, so also the final one. A superseded version that is too large
    to ride inline stays for a while: clients that were sent to fetch it may not have begun.
    """

    def __init__(self, ledger: Ledger, blobs: FolderBlobStore, grace_seconds: float) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._grace_seconds = grace_seconds
        self._keep: dict[str, int] = {}

    def note(self, task_id: str, keep_checkpoints: int) -> None:
        """Look at this task the next time: it has a new checkpoint."""
        self._keep[task_id] = keep_checkpoints

    async def drop_superseded(self, now: float) -> None:
        """Drop what is too much of the tasks that were noted. ``now`` is on the server's clock."""
        noted, self._keep = self._keep, {}
        superseded: list[CheckpointRecord] = []
        for task_id, keep in noted.items():
            old = superseded_checkpoints(await self._ledger.checkpoints(task_id), keep)
            ripe = [c for c in old if c.weights.size_bytes <= INLINE_BYTES or c.created_at + self._grace_seconds < now]
            if len(ripe) < len(old):
                self._keep.setdefault(task_id, keep)
            if ripe:
                await self._ledger.drop_checkpoints(task_id, [c.round for c in ripe])
                superseded += ripe
        if superseded:
            referenced = await self._ledger.referenced_digests()
            await asyncio.to_thread(self._delete, _digests(superseded) - referenced)

    def _delete(self, digests: Collection[str]) -> None:
        for digest in digests:
            try:
                # a commit that is not in the ledger yet may have stored the same bytes again just now
                if time.time() - self._blobs.path(digest).stat().st_mtime > 1.0:
                    self._blobs.delete(digest)
            except (NotFound, FileNotFoundError):
                continue


def superseded_checkpoints(kept: Collection[CheckpointRecord], keep: int) -> list[CheckpointRecord]:
    """Return all but the newest ``keep``."""
    return sorted(kept, key=lambda c: c.round, reverse=True)[keep:]


def _digests(checkpoints: Collection[CheckpointRecord]) -> set[str]:
    refs = [ref for c in checkpoints for ref in (c.weights, c.optimizer, c.manifest)]
    return {ref.digest for ref in refs if ref is not None}


async def collect_blobs(ledger: Ledger, blobs: FolderBlobStore, settings: ServerSettings) -> None:
    """Delete blobs that nothing refers to, once they are older than an upload may wait for its submission."""
    referenced = await ledger.referenced_digests()
    collected = await asyncio.to_thread(blobs.collect, referenced, settings.blob_grace_seconds, time.time())
    if collected.count:
        _log.info("unreferenced blobs collected", blobs=collected.count, bytes=collected.bytes)


def lacks_space(folder: Path, min_free_bytes: int) -> str | None:
    """Say that the folder's disk is nearly full, or return None."""
    free = shutil.disk_usage(folder).free
    if free >= min_free_bytes:
        return None
    return f"only {free} bytes are free in {folder} and {min_free_bytes} must stay free; make room"
