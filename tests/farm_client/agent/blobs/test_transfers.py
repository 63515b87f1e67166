"""The owner's limits on an agent's transfers: set while it runs, and told apart from the link."""

from __future__ import annotations

import asyncio

import pytest

from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import parse_address


@pytest.fixture
async def transfers(farm):
    async with Transfers(parse_address(farm.url), download_rate=2**20) as transfers:
        yield transfers


async def test_it_says_which_figure_is_the_link_and_which_is_the_owners_limit(transfers):
    assert transfers.link_in_words() == "down not measured (limited by you to 1.0 MiB/s), up not measured"
    transfers.limit(2**21, None)
    with transfers._carrier.download_speed.moving():
        transfers._carrier.download_speed.moved(2**25)
    down, up = transfers.link_in_words().split(", up ")
    assert down.startswith("down ")
    assert "limited" not in down
    assert up == "not measured (limited by you to 2.0 MiB/s)"


async def test_what_came_in_a_message_makes_downloads_wait_and_a_new_limit_ends_that(transfers):
    transfers.came_in_message(2**30)
    assert transfers.tally.received_bytes == 2**30
    waiting = asyncio.create_task(transfers._carrier.download_rate.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    transfers.limit(None, None)
    async with asyncio.timeout(10):
        await waiting


async def test_an_update_inside_a_message_waits_for_the_upload_rate(transfers):
    transfers.limit(1, None)
    waiting = asyncio.create_task(transfers.pace_message(10**6))
    await asyncio.sleep(0)
    assert not waiting.done()
    transfers.limit(10**12, None)
    async with asyncio.timeout(10):
        await waiting


async def test_a_limit_that_stays_forgets_no_measurement(transfers):
    speed = transfers._carrier.download_speed
    with speed.moving():
        speed.moved(2**25)
        speed.held_back()
    known = speed.bytes_per_second
    assert known > 0
    transfers.limit(None, 2**20)
    assert speed.bytes_per_second == known
    transfers.limit(None, 2**19)
    assert speed.bytes_per_second == 0
