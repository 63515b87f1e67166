"""What takes the server's disk, and what may go."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from farm_server.http.access import FARM_TOKEN, DiskUsageDep
from protocol.rest import CollectedView, RoomView

router = APIRouter(prefix="/v1", tags=["farm"], dependencies=FARM_TOKEN)


@router.get("/room", summary="What takes the server's disk, by task")
async def room(disk: DiskUsageDep) -> RoomView:
    """Return the largest tasks, and what is kept of each."""
    return await disk.view()


@router.post("/gc", summary="Remove now what nothing needs and what is too much")
async def collect(
    disk: DiskUsageDep, dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = False
) -> CollectedView:
    """Prune histories by the policy, and remove blobs that nothing has needed for the grace time."""
    return await disk.collect(dry_run=dry_run)
