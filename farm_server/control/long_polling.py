"""Wakes those who wait for something new in a feed (long-polling)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from coordinator.records import Entry

FARM = ""
"""The topic of the whole farm's feed; a task's topic is its id."""


class Notifier:
    """Wakes by topic. All on the event loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    def notify(self, topics: Iterable[str]) -> None:
        """Wake everybody who listens to one of the topics."""
        for topic in topics:
            for event in self._waiting.get(topic, ()):
                event.set()

    def saved(self, entries: Iterable[Entry]) -> None:
        """Wake everybody who follows what was saved: the farm's feed, and those of the entries' tasks."""
        self.notify({FARM, *(e.task_id or FARM for e in entries)})

    def close(self) -> None:
        """Wake everybody for good: the server goes down."""
        self.closed = True
        self.notify(list(self._waiting))

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set by all news from now on; listen first, read next, so that nothing is missed."""
        event = asyncio.Event()
        self._waiting.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[topic].discard(event)
            if not self._waiting[topic]:
                del self._waiting[topic]
