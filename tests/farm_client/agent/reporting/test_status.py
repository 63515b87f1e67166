"""What the owner of the machine sees of the cache, of the transfers and of why an update waits."""

import json
import subprocess
import sys

from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.reporting.status import StatusBoard, read_status
from farm_client.transfer.tally import Tally
from protocol.assignments import Ack, Result
from protocol.credit import Credit
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

STATS = CacheStats(entries=3, used_bytes=2**20, max_bytes=2**30, hits=3, misses=1, served_bytes=2**21, damaged=1)
HUGE = b"w" * 3_000_000
"""Weights whose update goes in parts, and so needs a turn."""


def status(home, *options):
    command = [sys.executable, "-m", "farm_client", "status", "--home", str(home), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_status_tells_of_the_cache_and_of_what_moved(tmp_path):
    home = HomeFolder(tmp_path / "home")
    with home.held():
        board = StatusBoard(home.status_file)
        board.look = lambda: (STATS, Tally(sent_bytes=5 * 2**20, sent_again_bytes=2**10))
        board.show(doing="resting")
        text, data = status(home.root), json.loads(status(home.root, "--json"))["data"]
    assert "1.0 MiB of 1.0 GiB in 3 blobs" in text
    assert "3 of 4 asked for were here (2.0 MiB not fetched)" in text
    assert "1 damaged" in text
    assert "5.0 MiB sent (1.0 KiB again)" in text
    assert (data["cache"]["hits"], data["moved"]["sent_bytes"]) == (3, 5 * 2**20)


async def test_a_running_agent_keeps_its_status_up_to_date(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=HUGE, inline=False))
        await peer.acknowledge(await peer.expect(Result))
        await until(lambda: read_status(home / "status.json").moved.sent_bytes >= len(HUGE), 30)
    known = read_status(home / "status.json")
    assert known.cache.misses == 3  # the code, the shard and the weights
    assert known.moved.received_bytes > len(HUGE)


async def test_what_rides_inside_messages_is_counted_too(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        assign = farm.assign(farm.task(), weights=b"w" * 500)
        await peer.send(assign)
        result = await peer.expect(Result)
        await peer.close(1012)
        peer = await joined(farm, incarnation=2)
        assert await peer.expect(Result) == result
        credit = Credit(samples=result.samples, flops=2e9)
        await peer.send(Ack(assignment_id=result.assignment_id, fence=result.fence, counted=True, credit=credit))
        update_bytes = len(result.update.inline)
        await until(lambda: read_status(home / "status.json").delivered == 1)
    assert read_status(home / "status.json").credit == credit
    moved = read_status(home / "status.json").moved
    fetched = assign.task.code.size_bytes + assign.slices[0].shard.blob.size_bytes
    assert (moved.sent_bytes, moved.sent_again_bytes) == (2 * update_bytes, update_bytes)
    assert moved.received_bytes == 500 + fetched


async def test_an_update_that_waits_for_its_turn_says_so_here_and_to_the_farm(farm, start_agent, home):
    farm.waits = ["3 uploads are before it"] * 100_000
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(), weights=HUGE, inline=False))
        await until(lambda: any(x.waits for m in peer.log for x in getattr(m, "assignments", ())), 30)
        await until(lambda: "3 uploads are before it" in read_status(home / "status.json").doing, 30)
        farm.waits.clear()
        await peer.acknowledge(await peer.expect(Result))
        await until(lambda: "before it" not in read_status(home / "status.json").doing, 30)
