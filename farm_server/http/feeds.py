"""Feeds that are followed by long-polling: events, log lines, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from coordinator.records import EventRecord
from farm_server.control.long_polling import FARM, Bells
from farm_server.http.access import FARM_TOKEN, FarmDep
from farm_server.http.listing import listing
from protocol.bounds import Natural
from protocol.rest import EventView, LogView, MetricView
from storage.ledger import Numbered

router = APIRouter(prefix="/v1", tags=["feeds"], dependencies=FARM_TOKEN)

_LONGEST_WAIT_SECONDS = 30.0
_LARGEST_PAGE = 5000
_T = TypeVar("_T")


class Page(BaseModel):
    """Which part of a feed: entries numbered above ``after``, at most ``limit``; wait so long for the first one."""

    after: Natural = Field(default=0, description="The last sequence number that was seen.")
    wait: float = Field(default=0.0, ge=0, le=_LONGEST_WAIT_SECONDS, description="Seconds to wait for news.")
    limit: int = Field(default=1000, ge=1, le=_LARGEST_PAGE)


def get_page(page: Annotated[Page, Query()]) -> Page:
    """Return the page that the query asks for."""
    return page


PageDep = Annotated[Page, Depends(get_page)]


async def follow(bells: Bells, topic: str, page: Page, read: Callable[[int, int], Awaitable[list[_T]]]) -> list[_T]:
    """Read the page; while it is empty wait for the topic's bell, as long as the page allows."""
    deadline = asyncio.get_running_loop().time() + page.wait
    while True:
        async with bells.listen(topic) as rung:
            found = await read(page.after, page.limit)
            left = deadline - asyncio.get_running_loop().time()
            if found or left <= 0 or bells.closed:
                return found
            try:
                await asyncio.wait_for(rung.wait(), left)
            except TimeoutError:
                return []


@router.get("/events", summary="What happened on the farm, oldest first", response_model=list[EventView])
async def farm_events(farm: FarmDep, page: PageDep) -> Response:
    """Return events of all tasks and clients."""
    found = await follow(farm.bells, FARM, page, lambda after, limit: farm.ledger.events(None, after, limit))
    return listing([_event(n) for n in found])


@router.get(
    "/tasks/{task_id}/events", summary="What happened to the task, oldest first", response_model=list[EventView]
)
async def task_events(task_id: str, farm: FarmDep, page: PageDep) -> Response:
    """Return the task's events. 404 for an unknown task."""
    farm.coordinator.task_view(task_id, farm.clock.now())
    found = await follow(farm.bells, task_id, page, lambda after, limit: farm.ledger.events(task_id, after, limit))
    return listing([_event(n) for n in found])


@router.get(
    "/tasks/{task_id}/logs", summary="The researcher's own output, from every client", response_model=list[LogView]
)
async def task_logs(task_id: str, farm: FarmDep, page: PageDep) -> Response:
    """Return log lines. 404 for an unknown task."""
    farm.coordinator.task_view(task_id, farm.clock.now())
    found = await follow(farm.bells, task_id, page, lambda after, limit: farm.ledger.logs(task_id, after, limit))
    return listing(
        [
            LogView(
                seq=n.seq,
                at=n.entry.at,
                client_id=n.entry.client_id,
                client_name=n.entry.client_name,
                round=n.entry.round,
                stream=n.entry.stream,
                text=n.entry.text,
            )
            for n in found
        ]
    )


@router.get(
    "/tasks/{task_id}/metrics",
    summary="Measured values: of rounds, of evaluations, from log(...)",
    response_model=list[MetricView],
)
async def task_metrics(task_id: str, farm: FarmDep, page: PageDep) -> Response:
    """Return metrics. 404 for an unknown task."""
    farm.coordinator.task_view(task_id, farm.clock.now())
    found = await follow(farm.bells, task_id, page, lambda after, limit: farm.ledger.metrics(task_id, after, limit))
    return listing(
        [
            MetricView(
                seq=n.seq,
                at=n.entry.at,
                round=n.entry.round,
                step=n.entry.step,
                name=n.entry.name,
                value=n.entry.value,
                source=n.entry.source,
                client_id=n.entry.client_id,
            )
            for n in found
        ]
    )


def _event(numbered: Numbered[EventRecord]) -> EventView:
    entry = numbered.entry
    return EventView(
        seq=numbered.seq,
        at=entry.at,
        task_id=entry.task_id,
        kind=entry.kind,
        message=entry.message,
        client_id=entry.client_id,
        round=entry.round,
        data=dict(entry.data),
    )
