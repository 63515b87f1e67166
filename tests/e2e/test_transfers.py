"""The client's transfers against the real server, through a line that is cut again and again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from benchmarks.cut_uploads import cut, cut_carrier
from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import parse_address
from farm_client.transfer.upload import UploadListener
from protocol.digests import digest_bytes
from protocol.ranges import ByteRanges, ContentRange
from protocol.rest_uploads import UploadReply, UploadState
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from tests.chaos.proxy import FaultProxy
from tests.farm_server.conftest import Running, running

MIB = 1024 * 1024
SIZE = 20 * MIB
PATIENT = RetryPolicy(first_seconds=0.01, longest_seconds=0.05, tries=40)


@dataclass
class Acknowledged:
    """Hears which bytes the farm said it has, and how many of those a client sends after that."""

    kept: ByteRanges = field(default_factory=ByteRanges)
    sent_after_bytes: int = 0

    async def hear_request(self, request: httpx.Request) -> None:
        if request.method == "PATCH":
            place = ContentRange.parse(request.headers["content-range"])
            missing = self.kept.missing(place.end, place.start)
            self.sent_after_bytes += place.size_bytes - sum(gap.size_bytes for gap in missing)

    async def hear_response(self, response: httpx.Response) -> None:
        if response.request.method == "PATCH" and response.is_success:
            place = ContentRange.parse(response.request.headers["content-range"])
            self.kept.add(place.start, place.end)
        elif response.request.method == "POST" and response.is_success:
            reply = UploadReply.model_validate_json(await response.aread())
            if reply.state is UploadState.GO:
                for gap in ByteRanges(reply.missing).missing(SIZE):
                    self.kept.add(*gap)


@dataclass
class Line:
    """A server, and a client's way to it through a proxy."""

    server: Running
    proxy: FaultProxy
    transfers: Transfers
    acknowledged: Acknowledged

    def received_bytes(self) -> int:
        """What the server's routes got of uploads."""
        return int(self.server.farm.telemetry.blob_bytes.labels("in")._value.get())


@pytest.fixture(params=range(2))
async def line(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Line]:
    async with running(tmp_path / "server") as server:
        url = httpx.URL(server.info.url)
        with FaultProxy((url.host, url.port), seed=request.param) as proxy:
            address = parse_address(f"ws://{server.farm.tokens.join}@127.0.0.1:{proxy.port}")
            async with Transfers(address, PATIENT, client_id="c1") as transfers:
                acknowledged = Acknowledged()
                transfers._carrier.http.event_hooks = {
                    "request": [acknowledged.hear_request],
                    "response": [acknowledged.hear_response],
                }
                yield Line(server, proxy, transfers, acknowledged)


async def test_a_blob_goes_up_and_down_through_cuts_and_no_acknowledged_byte_moves_twice(
    line: Line, tmp_path: Path
) -> None:
    data = random.Random(7).randbytes(SIZE)
    ref = BlobRef(digest=digest_bytes(data), size_bytes=SIZE)
    source = tmp_path / "update"
    source.write_bytes(data)
    line.proxy.reset_each(3 * MIB)
    await line.transfers.upload(ref.digest, source)
    up_resets = line.proxy.resets
    assert up_resets > 0
    assert await asyncio.to_thread(line.server.farm.blobs.read, ref.digest) == data
    async with Fetcher(BlobCache(tmp_path / "cache", 10**9), line.transfers) as fetcher:
        (tmp_path / "cache").mkdir()
        assert (await fetcher.fetch(ref)).read_bytes() == data
    assert line.proxy.resets > up_resets
    tally = line.transfers.tally
    assert line.acknowledged.sent_after_bytes == 0
    assert line.received_bytes() <= tally.sent_bytes
    assert (tally.received_bytes, tally.received_again_bytes) == (SIZE, 0)
    assert tally.sent_bytes == SIZE + tally.sent_again_bytes
    figures = line.transfers.link_figures(0.02)
    assert figures.round_trip_seconds == 0.02
    assert min(figures.upload_bytes_per_second, figures.download_bytes_per_second) > 0


async def test_a_line_that_stands_still_for_a_while_costs_nothing(line: Line, tmp_path: Path) -> None:
    data = random.Random(8).randbytes(4 * MIB)
    stalled = asyncio.Event()

    async def stall_once(_url: str) -> bool:
        if not stalled.is_set():
            stalled.set()
            line.proxy.stall()
            asyncio.get_running_loop().call_later(0.5, line.proxy.flow)
        return False

    line.transfers._carrier = cut_carrier(line.transfers._carrier, stall_once)
    await line.transfers.upload(digest_bytes(data), data)
    assert line.received_bytes() == len(data) == line.transfers.tally.sent_bytes


async def test_the_second_upload_waits_for_its_turn_and_is_told_why(tmp_path: Path) -> None:
    first, second = (random.Random(seed).randbytes(2 * MIB) for seed in range(2))
    held, released = asyncio.Event(), asyncio.Event()
    reasons: asyncio.Queue[str | None] = asyncio.Queue()

    async def hold(_url: str) -> bool:
        held.set()
        await released.wait()
        return False

    async with running(tmp_path, upload_credits=1, upload_idle_seconds=600) as server, AsyncExitStack() as stack:
        address = parse_address(f"{server.info.url.replace('http://', f'ws://{server.farm.tokens.join}@')}")
        one = await stack.enter_async_context(Transfers(address, PATIENT, client_id="c1", wrap=cut(hold)))
        two = await stack.enter_async_context(Transfers(address, PATIENT, client_id="c2"))
        async with asyncio.TaskGroup() as group:
            group.create_task(one.upload(digest_bytes(first), first))
            await held.wait()
            group.create_task(two.upload(digest_bytes(second), second, UploadListener(waits=reasons.put_nowait)))
            assert "1" in (await reasons.get() or "")
            assert not server.farm.blobs.has(digest_bytes(second))
            released.set()
        while await reasons.get() is not None:
            pass
        assert all(server.farm.blobs.has(digest_bytes(data)) for data in (first, second))
