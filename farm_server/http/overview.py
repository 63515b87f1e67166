"""The farm as a whole: the farm view, its clients, and what watches over it."""

from __future__ import annotations

from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from coordinator.events import ClientRemoved
from coordinator.lifecycle import ACTIVE
from farm_server.http.access import FARM_TOKEN, FarmDep
from farm_server.http.listing import listing
from protocol.limits import INLINE_BYTES
from protocol.rest import ClientView, FarmView, RemovedClientView

router = APIRouter(prefix="/v1", tags=["farm"], dependencies=FARM_TOKEN)
watch_router = APIRouter(tags=["watch"])


@router.get("/farm", summary="The farm at a glance")
async def farm_view(farm: FarmDep) -> FarmView:
    """Return name, version and counts."""
    received, sent = farm.telemetry.wire.views()
    return FarmView(
        name=farm.settings.name,
        version=version("aifarm"),
        clients_online=len(farm.registry),
        tasks_active=sum(state in ACTIVE for state in farm.coordinator.task_states()),
        inline_bytes=INLINE_BYTES,
        started_at=farm.started_at,
        problem=farm.not_ready(),
        pace=farm.gateway.pace_view(),
        received=received,
        sent=sent,
        uploads_open=farm.uploads.open_count,
        uploads_waiting=farm.uploads.waiting_count,
    )


@router.get("/clients", summary="All known clients, the connected ones first", response_model=list[ClientView])
async def clients(farm: FarmDep) -> Response:
    """Return every client with its resources, load and standing."""
    return listing(farm.coordinator.client_views(farm.clock.now()))


@router.delete("/clients/{client_id:path}", summary="Forget a client that is not connected")
async def remove_client(
    client_id: str,
    farm: FarmDep,
    force: Annotated[bool, Query(description="Close its connection first, if it has one.")] = False,
) -> RemovedClientView:
    """Do it; 409 where it is connected. Durable on return. What it did for tasks stays recorded, with its id."""
    await farm.runtime.ask(ClientRemoved(client_id, force))
    return RemovedClientView(client_id=client_id)


@watch_router.get("/healthz", summary="Is the process alive?", response_class=PlainTextResponse)
async def healthz() -> str:
    """Return 200 as long as the event loop turns."""
    return "ok\n"


@watch_router.get("/readyz", summary="Can it take work?", response_class=PlainTextResponse)
async def readyz(farm: FarmDep) -> Response:
    """Return 200, or 503 with the reason."""
    reason = farm.problem()
    if reason is None:
        return PlainTextResponse("ready\n")
    return PlainTextResponse(reason + "\n", HTTPStatus.SERVICE_UNAVAILABLE)


@watch_router.get("/metrics", summary="Counters for Prometheus", response_class=Response)
async def metrics(farm: FarmDep) -> Response:
    """Return Prometheus's text format."""
    return Response(farm.telemetry.page(), media_type=CONTENT_TYPE_LATEST)
