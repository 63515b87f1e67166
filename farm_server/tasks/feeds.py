"""Feeds of the ledger, followed by long-polling: events, log lines, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from coordinator.records import EventRecord
from farm_server.tasks.ended_tasks import EndedTasks
from protocol.rest import EventView, LogView, MetricView
from storage.ports.bus import FARM_TOPIC, Bus
from storage.ports.ledger import LedgerReader, Numbered

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FeedPart:
    """Of a feed: at most ``limit`` entries numbered above ``after``; wait so long for the first one."""

    after: int
    limit: int
    wait_seconds: float


class Feeds:
    """The newest entries of the farm and of each task, oldest first. An unknown task raises NotFound."""

    def __init__(self, ledger: LedgerReader, bus: Bus, tasks: EndedTasks) -> None:
        self._ledger = ledger
        self._bus = bus
        self._tasks = tasks

    async def farm_events(self, part: FeedPart) -> list[EventView]:
        """Return what happened on the farm."""
        found = await self._follow(FARM_TOPIC, part, lambda after, limit: self._ledger.events(None, after, limit))
        return [_event(n) for n in found]

    async def events(self, task_id: str, part: FeedPart) -> list[EventView]:
        """Return what happened to the task."""
        await self._tasks.require(task_id)
        found = await self._follow(task_id, part, lambda after, limit: self._ledger.events(task_id, after, limit))
        return [_event(n) for n in found]

    async def logs(self, task_id: str, part: FeedPart) -> list[LogView]:
        """Return the lines that the researcher's code printed, on every client."""
        await self._tasks.require(task_id)
        found = await self._follow(task_id, part, lambda after, limit: self._ledger.logs(task_id, after, limit))
        return [
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

    async def metrics(self, task_id: str, part: FeedPart) -> list[MetricView]:
        """Return measured values: of rounds, of evaluations, and those that the code logs."""
        await self._tasks.require(task_id)
        found = await self._follow(task_id, part, lambda after, limit: self._ledger.metrics(task_id, after, limit))
        return [
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

    async def _follow(self, topic: str, part: FeedPart, read: Callable[[int, int], Awaitable[list[_T]]]) -> list[_T]:
        """Read the part; while it is empty wait for news of the topic, as long as the part allows."""
        deadline = asyncio.get_running_loop().time() + part.wait_seconds
        while True:
            async with self._bus.subscribe(topic) as notified:
                found = await read(part.after, part.limit)
                left = deadline - asyncio.get_running_loop().time()
                if found or left <= 0 or self._bus.closed:
                    return found
                try:
                    await asyncio.wait_for(notified.wait(), left)
                except TimeoutError:
                    return []


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
