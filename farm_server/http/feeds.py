"""Feeds that are followed by long-polling: events, log lines, metrics."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from farm_server.http.access import FARM_TOKEN, FeedsDep
from farm_server.http.listing import listing
from farm_server.tasks.feeds import FeedPart
from protocol.bounds import Natural
from protocol.rest import EventView, LogView, MetricView

router = APIRouter(prefix="/v1", tags=["feeds"], dependencies=FARM_TOKEN)

_LONGEST_WAIT_SECONDS = 30.0
_LARGEST_PAGE = 5000


class Page(BaseModel):
    """Which part of a feed: entries numbered above ``after``, at most ``limit``; wait so long for the first one."""

    after: Natural = Field(default=0, description="The last sequence number that was seen.")
    wait: float = Field(default=0.0, ge=0, le=_LONGEST_WAIT_SECONDS, description="Seconds to wait for news.")
    limit: int = Field(default=1000, ge=1, le=_LARGEST_PAGE)


def get_part(page: Annotated[Page, Query()]) -> FeedPart:
    """Return the part of the feed that the query names."""
    return FeedPart(page.after, page.limit, page.wait)


PartDep = Annotated[FeedPart, Depends(get_part)]


@router.get("/events", summary="What happened on the farm, oldest first", response_model=list[EventView])
async def farm_events(feeds: FeedsDep, part: PartDep) -> Response:
    """Return events of all tasks and clients."""
    return listing(await feeds.farm_events(part))


@router.get(
    "/tasks/{task_id}/events", summary="What happened to the task, oldest first", response_model=list[EventView]
)
async def task_events(task_id: str, feeds: FeedsDep, part: PartDep) -> Response:
    """Return the task's events. 404 for an unknown task."""
    return listing(await feeds.events(task_id, part))


@router.get(
    "/tasks/{task_id}/logs", summary="The researcher's own output, from every client", response_model=list[LogView]
)
async def task_logs(task_id: str, feeds: FeedsDep, part: PartDep) -> Response:
    """Return log lines. 404 for an unknown task."""
    return listing(await feeds.logs(task_id, part))


@router.get(
    "/tasks/{task_id}/metrics",
    summary="Measured values: of rounds, of evaluations, from log(...)",
    response_model=list[MetricView],
)
async def task_metrics(task_id: str, feeds: FeedsDep, part: PartDep) -> Response:
    """Return metrics. 404 for an unknown task."""
    return listing(await feeds.metrics(task_id, part))
