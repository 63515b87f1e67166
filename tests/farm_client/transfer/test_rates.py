import asyncio

import pytest

from farm_client.transfer.rates import RateLimit


async def test_without_a_limit_everything_passes_at_once():
    limit = RateLimit()
    assert limit.portion_bytes(10**6) == 10**6
    await limit.take(10**12)


@pytest.mark.parametrize("takers", [1, 4])
async def test_all_takers_together_keep_the_limit(takers):
    """A slow machine only makes it slower."""
    limit, loop = RateLimit(100_000.0), asyncio.get_running_loop()

    async def take_some():
        for _ in range(20 // takers):
            await limit.take(2000)

    began = loop.time()
    await asyncio.gather(*(take_some() for _ in range(takers)))
    assert loop.time() - began >= 0.95 * (40_000 - 10_000) / 100_000  # a tenth of a second's worth passes at once


async def test_more_than_may_pass_at_once_passes_in_portions():
    limit = RateLimit(1_000_000.0)
    assert limit.portion_bytes(10**9) == 100_000
    assert limit.portion_bytes(10) == 10
    await limit.take(150_000)


async def test_the_smallest_limit_still_lets_something_pass():
    limit = RateLimit(1.0)
    assert limit.portion_bytes(100) == 1
    await limit.take(1)


async def test_a_taker_that_leaves_does_not_hold_up_the_others():
    limit = RateLimit(100_000.0)
    await limit.take(10_000)
    leaving = asyncio.create_task(limit.take(1_000_000))
    staying = asyncio.create_task(limit.take(1000))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    await asyncio.wait([leaving])
    assert leaving.cancelled()


async def test_a_change_holds_at_once_for_what_waits():
    limit = RateLimit(1.0)
    limit.charge(1_000_000)  # a debt of days
    waiting = asyncio.create_task(limit.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    limit.change(None)
    async with asyncio.timeout(10):
        await waiting
    assert limit.bytes_per_second is None


async def test_a_faster_limit_wakes_who_waits_for_a_slow_one():
    limit = RateLimit(1.0)
    limit.charge(1000)
    waiting = asyncio.create_task(limit.take(500))
    await asyncio.sleep(0)
    limit.change(1e9)
    async with asyncio.timeout(10):
        await waiting
    assert limit.bytes_per_second == 1e9


async def test_a_limit_can_be_set_later_and_a_slower_one_is_kept_too():
    now = [0.0]
    limit = RateLimit(now=lambda: now[0])
    limit.charge(10**9)  # without a limit nobody counts
    limit.change(1000.0)
    waits = []
    limit.on_wait = lambda: waits.append(now[0]) or now.__setitem__(0, now[0] + 1.0)
    await limit.take(100)
    assert waits == []
    limit.change(100.0)
    await limit.take(20)  # in portions of 10: as many as pass in a tenth of a second
    assert len(waits) == 2
    limit.change(0)
    assert not limit.is_limited
