import asyncio
import threading
import time
from dataclasses import replace

import pytest

from farm_client.transfer import download as module
from farm_client.transfer.download import download
from farm_client.transfer.partial_file import PartialFile
from farm_client.transfer.rates import RateLimit
from protocol.errors import DigestMismatch, NotFound, Unavailable

DATA = bytes(range(256)) * 1000
LARGE = b"".join(number.to_bytes(4, "big") for number in range(300_000))


@pytest.fixture
def small_parts(monkeypatch):
    """Make requests of 100,000 bytes: many of them for ``LARGE``."""
    monkeypatch.setattr(module, "PART_BYTES", 100_000)


@pytest.fixture
def fetch(carrier, tmp_path):
    async def fetch(ref, meter=lambda count: None, using=carrier):
        path = tmp_path / ref.digest
        await download(using, ref.digest, PartialFile(path, ref.size_bytes), meter)
        return path.read_bytes()

    return fetch


async def test_a_small_blob_is_one_request(farm, carrier, fetch):
    counts = []
    assert await fetch(farm.store(DATA), counts.append) == DATA
    assert farm.requests == [("GET", None)]
    assert counts[-1] == carrier.tally.received_bytes == len(DATA)


async def test_a_large_blob_comes_in_parts_of_which_none_comes_twice(farm, carrier, fetch, small_parts):
    ref = farm.store(LARGE)
    assert await fetch(ref) == LARGE
    assert len(farm.requests) == 12
    assert ("GET", "bytes=0-99999") in farm.requests  # the threads race
    assert (carrier.tally.received_bytes, carrier.tally.received_again_bytes) == (len(LARGE), 0)


async def test_a_cut_download_goes_on_where_it_was_cut(farm, carrier, fetch):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [100_000, 50_000]
    assert await fetch(ref) == DATA
    assert farm.requests == [("GET", None), ("GET", "bytes=100000-255999"), ("GET", "bytes=150000-255999")]
    assert carrier.tally.received_again_bytes == 0


async def test_parts_that_are_cut_are_filled_in(farm, carrier, fetch, small_parts):
    ref = farm.store(LARGE)
    farm.cut_after_bytes = [10, 0, 99_999, 50_000, 7]
    assert await fetch(ref) == LARGE
    assert (carrier.tally.received_bytes, carrier.tally.received_again_bytes) == (len(LARGE), 0)


async def test_a_line_that_brings_something_each_time_is_not_given_up(farm, fetch):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [10] * 20
    assert await fetch(ref) == DATA


async def test_a_line_that_brings_nothing_is_given_up_and_what_came_is_kept(farm, carrier, fetch, tmp_path):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [1000, 0, 0, 0]
    with pytest.raises(Unavailable, match="4 tries"):
        await fetch(ref)
    assert await fetch(ref) == DATA
    assert farm.requests[-1] == ("GET", "bytes=1000-255999")
    assert carrier.tally.received_bytes == len(DATA)
    assert [path.name for path in tmp_path.iterdir()] == [ref.digest]


async def test_a_download_that_is_cancelled_goes_on_later(farm, carrier, fetch, small_parts):
    ref = farm.store(LARGE)
    half = asyncio.Event()

    def meter(count):
        if count >= 500_000:
            half.set()

    task = asyncio.create_task(fetch(ref, meter))
    await half.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await fetch(ref) == LARGE
    assert carrier.tally.received_again_bytes == 0


async def test_a_cancelled_download_does_not_wait_for_a_farm_that_fell_silent(carrier, tmp_path):
    closed = asyncio.Event()

    async def answer(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await closed.wait()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as silent:
        carrier.bulk.base_url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
        partial = PartialFile(tmp_path / "half", 10)
        task = asyncio.create_task(download(carrier, "ab" * 32, partial))
        await asyncio.to_thread(wait_until_present, partial, 5)
        task.cancel()
        await asyncio.wait([task])
        for thread in [thread for thread in threading.enumerate() if thread.name == "transfer"]:
            await asyncio.to_thread(thread.join, 2)  # its read would end by itself after five
            assert not thread.is_alive()
        closed.set()


def wait_until_present(partial, count):
    deadline = time.monotonic() + 20
    while partial.present_bytes < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_damage_is_fetched_once_more(farm, fetch, tmp_path):
    ref = farm.store(DATA)
    farm.blobs[ref.digest] = b"evil" + DATA[4:]
    with pytest.raises(DigestMismatch, match="twice"):
        await fetch(ref)
    assert farm.methods() == ["GET", "GET"]
    assert list(tmp_path.iterdir()) == []


async def test_a_part_that_was_damaged_on_this_disk_is_mended(farm, fetch, tmp_path):
    ref = farm.store(DATA)
    partial = PartialFile(tmp_path / ref.digest, ref.size_bytes)
    partial.write(0, b"x" * 1000)
    partial.close()
    assert await fetch(ref) == DATA


@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
@pytest.mark.parametrize("started", [False, True])
async def test_a_copy_of_another_size_is_refused_before_it_comes(farm, carrier, fetch, tmp_path, size, started):
    ref = farm.store(DATA).model_copy(update={"size_bytes": size})
    if started:
        partial = PartialFile(tmp_path / ref.digest, size)
        partial.write(0, DATA[:1000])
        partial.close()
    with pytest.raises(DigestMismatch, match=f"{len(DATA)} bytes and not {size}"):
        await fetch(ref)
    assert carrier.tally.received_bytes == 0
    assert list(tmp_path.iterdir()) == []


async def test_a_blob_that_the_farm_does_not_have_is_not_asked_for_again(farm, fetch):
    ref = farm.store(DATA)
    farm.blobs.clear()
    with pytest.raises(NotFound):
        await fetch(ref)
    assert len(farm.requests) == 1


async def test_a_farm_that_is_away_is_unavailable(farm, carrier, fetch, tmp_path):
    carrier.bulk.base_url = "http://127.0.0.1:1"
    with pytest.raises(Unavailable, match="cannot fetch"):
        await fetch(farm.store(DATA))


async def test_an_empty_blob_is_not_asked_for(farm, fetch):
    assert await fetch(farm.store(b"")) == b""
    assert farm.requests == []


async def test_the_limit_holds_for_all_transfers_together(farm, carrier, tmp_path):
    limited = replace(carrier, download_rate=RateLimit(500_000))
    loop = asyncio.get_running_loop()
    refs = [farm.store(DATA + bytes([number])) for number in range(2)]
    began = loop.time()
    await asyncio.gather(
        *(download(limited, ref.digest, PartialFile(tmp_path / ref.digest, ref.size_bytes)) for ref in refs)
    )
    assert loop.time() - began >= 0.95 * (2 * len(DATA) - 50_000) / 500_000


async def test_a_farm_that_ignores_ranges_is_understood(farm, fetch, tmp_path):
    ref = farm.store(DATA)
    partial = PartialFile(tmp_path / ref.digest, ref.size_bytes)
    partial.write(0, DATA[:1000])
    partial.close()
    farm.ignore_ranges = True
    assert await fetch(ref) == DATA
    assert farm.requests == [("GET", "bytes=1000-255999")]
