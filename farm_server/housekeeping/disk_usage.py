"""What the server's disk is used for, and what may be removed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from typing import Final

from farm_server.environment.clock import Clock
from farm_server.environment.settings import ServerSettings
from farm_server.housekeeping.cleaning import Cleaner, history_policy
from protocol.errors import NotFound
from protocol.rest import CollectedView, RoomView, TaskRoom, TaskView
from storage.engine import ledger_path
from storage.ports.ledger import Ledger

_SHOWN: Final = 100


class DiskUsage:
    """``task_view`` returns a task as it is, and raises NotFound for one that is being removed."""

    def __init__(
        self,
        ledger: Ledger,
        settings: ServerSettings,
        cleaner: Cleaner,
        clock: Clock,
        task_view: Callable[[str], TaskView],
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._cleaner = cleaner
        self._clock = clock
        self._task_view = task_view

    async def view(self) -> RoomView:
        """Return the largest tasks, and what is kept of each."""
        tasks = []
        for usage in (await self._ledger.usage())[:_SHOWN]:
            try:
                view = self._task_view(usage.task_id)
            except NotFound:  # it is being removed
                continue
            tasks.append(
                TaskRoom(
                    task_id=usage.task_id,
                    name=view.name,
                    state=view.state,
                    blob_bytes=usage.blob_bytes,
                    rows=usage.rows,
                )
            )
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
