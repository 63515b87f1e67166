"""The farm as a whole: the farm view, its clients, the use of its disk, and probes for monitoring."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from farm_server.http.access import FARM_TOKEN, ClientsDep, DiskUsageDep, StatusDep
from farm_server.http.listing import listing
from protocol.rest import ClientView, CollectedView, FarmView, LinksView, RemovedClientView, RoomView

router = APIRouter(prefix="/v1", tags=["farm"], dependencies=FARM_TOKEN)
watch_router = APIRouter(tags=["watch"])


@router.get("/farm", summary="The farm at a glance")
async def farm_view(status: StatusDep) -> FarmView:
    """Return name, version and counts."""
    return status.view()


@router.get("/clients", summary="All known clients, the connected ones first", response_model=list[ClientView])
async def clients(clients: ClientsDep) -> Response:
    """Return every client with its resources, load and standing."""
    return listing(clients.views())


@router.get("/links", summary="The links to the clients that can take work now")
async def links(clients: ClientsDep) -> LinksView:
    """Return what those clients measured of their speeds and round trips, at the slowest tenth."""
    return clients.links()


@router.delete("/clients/{client_id:path}", summary="Forget a client that is not connected")
async def remove_client(
    client_id: str,
    clients: ClientsDep,
    force: Annotated[bool, Query(description="Close its connection first, if it has one.")] = False,
) -> RemovedClientView:
    """Do it; 409 where it is connected. Durable on return. What it did for tasks stays recorded, with its id."""
    await clients.remove(client_id, force=force)
    return RemovedClientView(client_id=client_id)


@watch_router.get("/healthz", summary="Is the process alive?", response_class=PlainTextResponse)
async def healthz() -> str:
    """Return 200 as long as the event loop turns."""
    return "ok\n"


@watch_router.get("/readyz", summary="Can it take work?", response_class=PlainTextResponse)
async def readyz(status: StatusDep) -> Response:
    """Return 200, or 503 with the reason."""
    reason = status.readiness.problem()
    if reason is None:
        return PlainTextResponse("ready\n")
    return PlainTextResponse(reason + "\n", HTTPStatus.SERVICE_UNAVAILABLE)


@watch_router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
async def metrics(status: StatusDep) -> Response:
    """Return Prometheus's text format."""
    return Response(status.telemetry.page(await status.tasks.counts()), media_type=CONTENT_TYPE_LATEST)


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
