"""Following a feed: every entry once and in order, however it is paged, and no news is slept through."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.records import EventRecord
from farm_server.control.in_process_bus import InProcessBus
from farm_server.tasks.feeds import FeedPart, Feeds
from protocol.rest import EventView
from storage.memory_ledger import MemoryLedger
from storage.ports.bus import topics_of
from storage.ports.ledger import Numbered

LONG_SECONDS = 3600.0
"""Nobody waits for so long in a test: a wake-up ends it."""


def event(number: int, task_id: str | None = None) -> EventRecord:
    return EventRecord(at=float(number), kind="news", message=str(number), task_id=task_id)


class Farm:
    """A ledger in memory, its bus, and the feeds that a server reads of both."""

    def __init__(self) -> None:
        self.ledger = MemoryLedger()
        self.bus = InProcessBus()
        self.feeds = Feeds(self.ledger, self.bus, cast("Any", None))  # the farm's feed asks for no task

    async def happens(self, *events: EventRecord) -> None:
        await self.ledger.save((), events)
        self.bus.publish(topics_of(events))

    async def read(self, after: int = 0, limit: int = 1000, wait_seconds: float = 0.0) -> list[EventView]:
        return await self.feeds.farm_events(FeedPart(after, limit, wait_seconds))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 30), limits=st.lists(st.integers(1, 9), min_size=1, max_size=40))
async def test_a_feed_read_in_pages_is_the_feed(count: int, limits: list[int]) -> None:
    farm = Farm()
    await farm.happens(*(event(number, "t1" if number % 3 else None) for number in range(count)))
    read: list[EventView] = []
    for limit in [*limits, *[1] * count]:
        page = await farm.read(read[-1].seq if read else 0, limit)
        assert len(page) <= limit
        read += page
    assert [one.message for one in read] == [str(number) for number in range(count)]
    assert [one.at for one in read] == [float(number) for number in range(count)]


async def test_who_waits_is_woken_by_what_happens_next_and_gets_only_that() -> None:
    farm = Farm()
    await farm.happens(event(1))
    (first,) = await farm.read()
    waiting = asyncio.create_task(farm.read(first.seq, wait_seconds=LONG_SECONDS))
    await asyncio.sleep(0)
    assert not waiting.done()
    await farm.happens(event(2))
    assert [one.message for one in await waiting] == ["2"]


async def test_what_happens_between_the_reading_and_the_waiting_is_not_slept_through() -> None:
    """The ledger's answer is already old when it comes: the reader must have subscribed before it asked."""
    farm = Farm()

    class SlowLedger(MemoryLedger):
        asked = 0

        async def events(self, *arguments: Any, **named: Any) -> list[Numbered[EventRecord]]:
            found = await super().events(*arguments, **named)
            self.asked += 1
            if self.asked == 1:
                await farm.happens(event(1))
            return found

    farm.ledger = SlowLedger()
    farm.feeds = Feeds(farm.ledger, farm.bus, cast("Any", None))
    assert [one.message for one in await farm.read(wait_seconds=LONG_SECONDS)] == ["1"]


async def test_a_wake_up_without_news_is_no_answer() -> None:
    """A bus between machines may wake too often: the reader looks, and goes on waiting."""
    farm = Farm()
    waiting = asyncio.create_task(farm.read(wait_seconds=LONG_SECONDS))
    for _ in range(5):
        await asyncio.sleep(0)
        farm.bus.publish(topics_of([event(0)]))
    await asyncio.sleep(0)
    assert not waiting.done()
    await farm.happens(event(1))
    assert len(await waiting) == 1


async def test_the_end_of_the_wait_is_an_empty_answer() -> None:
    farm = Farm()
    assert await farm.read(wait_seconds=0.0) == []
    assert await farm.read(wait_seconds=0.001) == []


async def test_a_server_that_goes_down_lets_nobody_wait() -> None:
    farm = Farm()
    waiting = asyncio.create_task(farm.read(wait_seconds=LONG_SECONDS))
    await asyncio.sleep(0)
    farm.bus.close()
    assert await waiting == []
    assert await farm.read(wait_seconds=LONG_SECONDS) == []


async def test_many_who_wait_all_hear_of_it_and_none_is_kept() -> None:
    farm = Farm()
    waiting = [asyncio.create_task(farm.read(wait_seconds=LONG_SECONDS)) for _ in range(20)]
    gone = asyncio.create_task(farm.read(wait_seconds=LONG_SECONDS))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    await farm.happens(event(1))
    answers = await asyncio.gather(*waiting)
    assert all([one.message for one in answer] == ["1"] for answer in answers)
    assert farm.bus._subscribers == {}, "who has its answer, or left, is forgotten"
