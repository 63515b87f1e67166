"""What the server's disk is used for, and what may be removed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Final

from farm_server.environment.clock import Clock
from farm_server.environment.settings import ServerSettings
from farm_server.housekeeping.cleaning import Cleaner, history_policy
from protocol.rest import CollectedView, RoomView, TaskRoom, TaskView
from storage.engine import ledger_path
from storage.ports.ledger import Ledger

_SHOWN: Final = 100


class DiskUsage:
    """``task_views`` returns tasks by id, without those that are being removed."""

    def __init__(
        self,
        ledger: Ledger,
        settings: ServerSettings,
        cleaner: Cleaner,
        clock: Clock,
        task_views: Callable[[list[str]], Awaitable[dict[str, TaskView]]],
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._cleaner = cleaner
        self._clock = clock
        self._task_views = task_views

    async def view(self) -> RoomView:
        """Return the largest tasks, and what is kept of each."""
        largest = (await self._ledger.usage())[:_SHOWN]
        views = await self._task_views([usage.task_id for usage in largest])
        tasks = [
            TaskRoom(
                task_id=usage.task_id,
                name=views[usage.task_id].name,
                state=views[usage.task_id].state,
                blob_bytes=usage.blob_bytes,
                rows=usage.rows,
            )
            for usage in largest
            if usage.task_id in views
        ]
        ledger = await asyncio.to_thread(ledger_path(self._settings.ledger_url).stat)
        return RoomView(
            free_bytes=(await asyncio.to_thread(shutil.disk_usage, self._settings.data_dir)).free,
            ledger_bytes=ledger.st_size,
            policy=str(history_policy(self._settings)),
            tasks=tuple(tasks),
        )

    async def collect(self, *, dry_run: bool) -> CollectedView:
        """Remove now what nothing needs and what is too much; in a dry run only say what. Raises: FarmError."""
        cleaned = await self._cleaner.clean(self._clock.now(), dry_run=dry_run)
        return CollectedView(dry_run=dry_run, blobs=cleaned.blobs, bytes=cleaned.bytes, rows=cleaned.rows)
