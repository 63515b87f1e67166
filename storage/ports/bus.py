"""The bus: wakes those who wait for something new, wherever in the farm they are.

Each sentence with a MUST is held to every implementation by ``tests/contract/test_bus.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from coordinator.records import Entry

FARM_TOPIC: Final = ""
"""Whatever happens on the farm; a task's topic is its id."""


def topics_of(entries: Iterable[Entry]) -> set[str]:
    """Return the topics that saved entries belong to: the farm's, and those of their tasks."""
    return {FARM_TOPIC, *(entry.task_id or FARM_TOPIC for entry in entries)}


class Bus(Protocol):
    """Publish and subscribe of topics that carry nothing: a wake-up says "read the ledger again", and no more.

    Delivery is at most once: what is published while nobody subscribes is gone, several publications may be one
    wake-up, and a bus between machines may lose one. So readers subscribe first, read next, and wait with a limit.
    """

    @property
    def closed(self) -> bool:
        """Whether the bus is closed: there is nothing to wait for any more."""

    def publish(self, topics: Iterable[str]) -> None:
        """Wake all who subscribe to one of the topics, and nobody else.

        It MUST wake every subscriber of these topics, MUST NOT wake those of others, and MUST NOT block or raise
        because of who listens, or because nobody does.
        """

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[asyncio.Event]:
        """Give an event that is set by each publication from now on; whoever waits clears it.

        A publication between the subscription and the wait MUST NOT be missed; one from before MUST NOT be delivered.
        A subscriber that left MUST NOT be kept.
        """

    def close(self) -> None:
        """Wake everybody for good: the server goes down. It MUST wake every subscriber, also one that comes later."""
