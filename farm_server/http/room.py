"""What takes the server's disk, and what may go."""

from __future__ import annotations

import asyncio
import shutil
from typing import Annotated, Final

from fastapi import APIRouter, Query

from farm_server.housekeeping.cleaning import history_policy
from farm_server.http.access import FARM_TOKEN, FarmDep
from protocol.errors import NotFound
from protocol.rest import CollectedView, RoomView, TaskRoom
from storage.engine import ledger_path

router = APIRouter(prefix="/v1", tags=["farm"], dependencies=FARM_TOKEN)

_SHOWN: Final = 100


@router.get("/room", summary="What takes the server's disk, by task")
async def room(farm: FarmDep) -> RoomView:
    """Return the largest tasks, and what is kept of each."""
    tasks = []
    for usage in (await farm.ledger.usage())[:_SHOWN]:
        try:
            view = farm.coordinator.task_view(usage.task_id, farm.clock.now())
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
    path = ledger_path(farm.settings.ledger_url)
    ledger = await asyncio.to_thread(path.stat)
    return RoomView(
        free_bytes=(await asyncio.to_thread(shutil.disk_usage, farm.settings.data_dir)).free,
        ledger_bytes=ledger.st_size,
        policy=str(history_policy(farm.settings)),
        tasks=tuple(tasks),
    )


@router.post("/gc", summary="Remove now what nothing needs and what is too much")
async def collect(
    farm: FarmDep, dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = False
) -> CollectedView:
    """Prune histories by the policy, and remove blobs that nothing has needed for the grace time."""
    cleaned = await farm.cleaner.clean(farm.clock.now(), dry_run=dry_run)
    return CollectedView(dry_run=dry_run, blobs=cleaned.blobs, bytes=cleaned.bytes, rows=cleaned.rows)
