"""What every bus must do. A new implementation joins by a line in ``BUSES``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from farm_server.control.in_process_bus import InProcessBus
from storage.ports.bus import FARM_TOPIC, Bus
from tests.contract.holds import holds

BUSES: dict[str, Callable[[], Bus]] = {"in process": InProcessBus}


@pytest.fixture(params=BUSES)
def bus(request: pytest.FixtureRequest) -> Bus:
    return BUSES[request.param]()


async def woken(event: asyncio.Event) -> None:
    async with asyncio.timeout(30):
        await event.wait()


@holds("MUST wake every subscriber of these topics", "MUST NOT wake those of others")
async def test_a_publication_wakes_the_subscribers_of_its_topics_only(bus: Bus) -> None:
    async with (
        bus.subscribe("t1") as mine,
        bus.subscribe("t1") as also_mine,
        bus.subscribe("t2") as other,
        bus.subscribe(FARM_TOPIC) as farm,
    ):
        bus.publish({FARM_TOPIC, "t1"})
        for event in (mine, also_mine, farm):
            await woken(event)
        assert not other.is_set()


@holds("MUST NOT block or raise because of who listens, or because nobody does")
async def test_nobody_need_listen_nor_take_notice(bus: Bus) -> None:
    bus.publish({"t1"})
    async with bus.subscribe("t1") as deaf:
        for _ in range(100):
            bus.publish({"t1", "t9"})
        await woken(deaf)


@holds("A publication between the subscription and the wait MUST NOT be missed")
async def test_what_is_published_before_the_wait_ends_it(bus: Bus) -> None:
    async with bus.subscribe("t1") as event:
        bus.publish({"t1"})
        await woken(event)
        event.clear()
        bus.publish({"t1"})
        await woken(event)


@holds("one from before MUST NOT be delivered", "A subscriber that left MUST NOT be kept")
async def test_who_comes_later_is_not_woken_by_what_was_before(bus: Bus) -> None:
    async with bus.subscribe("t1") as gone:
        pass
    bus.publish({"t1"})
    async with bus.subscribe("t1") as late:
        assert not late.is_set()
    assert not gone.is_set()


@holds("It MUST wake every subscriber, also one that comes later")
async def test_the_close_wakes_everybody_for_good(bus: Bus) -> None:
    async with bus.subscribe("t1") as mine, bus.subscribe("t2") as other:
        assert not bus.closed
        bus.close()
        await woken(mine)
        await woken(other)
    assert bus.closed
    async with bus.subscribe("t3") as late:
        await woken(late)
