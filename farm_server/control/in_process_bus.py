"""The bus of a farm that is one process: events of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager


class InProcessBus:
    """A ``Bus``. All on the event loop; no wake-up is lost."""

    def __init__(self) -> None:
        self._subscribers: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    def publish(self, topics: Iterable[str]) -> None:
        """Wake all who subscribe to one of the topics."""
        for topic in topics:
            for event in self._subscribers.get(topic, ()):
                event.set()

    def close(self) -> None:
        """Wake everybody for good."""
        self.closed = True
        self.publish(self._subscribers)

    @asynccontextmanager
    async def subscribe(self, topic: str) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set by each publication from now on; subscribe first, read next."""
        event = asyncio.Event()
        if self.closed:
            event.set()
        self._subscribers.setdefault(topic, set()).add(event)
        try:
            yield event
        finally:
            self._subscribers[topic].discard(event)
            if not self._subscribers[topic]:
                del self._subscribers[topic]
