import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_book import read_notes
from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.address import parse_address
from farm_client.agent.errors import CacheFull
from farm_client.transfer.partial_file import PartialFile
from protocol.assignments import Prefetch, Result
from protocol.digests import digest_bytes
from protocol.errors import NotFound, Unavailable
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

AT_ONCE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=4)
DATA = bytes(range(256)) * 1000


@pytest.fixture
async def transfers(farm):
    async with Transfers(parse_address(farm.url), AT_ONCE, client_id="c1") as transfers:
        yield transfers


@pytest.fixture
def cache(tmp_path):
    return BlobCache(tmp_path, 10_000_000)


@pytest.fixture
async def fetcher(cache, transfers):
    async with Fetcher(cache, transfers) as fetcher:
        yield fetcher


def blob(farm, number, size=1000):
    return farm.store(bytes([number]) * size)


async def test_it_names_itself_to_the_farm(farm, fetcher):
    await fetcher.fetch(farm.store(DATA))
    assert farm.clients == {"c1"}


async def test_what_came_survives_a_restart_of_the_agent(farm, transfers, tmp_path):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [100_000, 0, 0, 0]
    async with Fetcher(BlobCache(tmp_path, 10_000_000), transfers) as first:
        with pytest.raises(Unavailable, match="4 tries"):
            await first.fetch(ref)
    async with Fetcher(BlobCache(tmp_path, 10_000_000), transfers) as second:
        assert (await second.fetch(ref)).read_bytes() == DATA
    assert farm.requests[-1] == ("GET", "bytes=100000-255999")
    assert not list(tmp_path.glob("*.*"))


async def test_how_long_a_download_took_is_remembered_for_the_next_run(farm, transfers, tmp_path):
    whole, rest = farm.store(DATA), farm.store(bytes(reversed(DATA)))
    async with Fetcher(BlobCache(tmp_path, 10_000_000), transfers) as fetcher:
        await fetcher.fetch(whole)
        partial = PartialFile(fetcher.cache.reserve(rest.digest, rest.size_bytes), rest.size_bytes)
        partial.write(0, bytes(reversed(DATA))[:-1000])
        partial.close()
        await fetcher.fetch(rest)
    blobs = read_notes(tmp_path).blobs
    assert blobs[whole.digest].fetch_seconds > 0
    assert blobs[rest.digest].fetch_seconds is None  # so little of it does not tell


async def test_a_blob_that_the_farm_does_not_have_leaves_nothing(farm, fetcher, tmp_path):
    with pytest.raises(NotFound):
        await fetcher.fetch(BlobRef(digest=digest_bytes(b"gone"), size_bytes=4))
    assert fetcher.cache.used_bytes == 0
    assert not list(tmp_path.glob("*.*"))


async def test_requests_at_the_same_time_share_the_download(farm, fetcher):
    ref = farm.store(DATA)
    paths = await asyncio.gather(*(fetcher.fetch(ref) for _ in range(5)))
    assert len(set(paths)) == 1
    assert len(farm.requests) == 1


async def test_one_that_leaves_does_not_end_the_others_download(farm, fetcher):
    ref = farm.store(DATA)
    async with holding(farm):
        leaving, staying = (asyncio.create_task(fetcher.fetch(ref)) for _ in range(2))
        await farm.asked.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
    assert (await staying).read_bytes() == DATA


async def test_a_download_that_was_cancelled_can_begin_again_at_once(farm, fetcher):
    ref = farm.store(DATA)
    async with holding(farm):
        leaving = asyncio.create_task(fetcher.fetch(ref))
        await farm.asked.wait()
        leaving.cancel()
        again = asyncio.create_task(fetcher.fetch(ref))
    assert (await again).read_bytes() == DATA
    assert leaving.cancelled()


async def test_an_inline_blob_is_kept_without_asking(farm, fetcher):
    ref = BlobRef(digest=digest_bytes(b"small"), size_bytes=5, inline=b"small")
    assert (await fetcher.fetch(ref)).read_bytes() == b"small"
    assert (await fetcher.fetch(ref.model_copy(update={"inline": None}))).read_bytes() == b"small"
    assert farm.requests == []


async def test_an_entry_that_was_damaged_between_runs_is_fetched_again(farm, transfers, tmp_path):
    ref = farm.store(DATA)
    async with Fetcher(BlobCache(tmp_path, 10_000_000), transfers) as first:
        path = await first.fetch(ref)
    flip_a_byte(path)
    notes = []
    async with Fetcher(BlobCache(tmp_path, 10_000_000, notes.append), transfers) as again:
        assert (await again.fetch(ref)).read_bytes() == DATA
        assert again.cache.stats().damaged == 1
    assert ["damaged" in note for note in notes] == [True]


async def test_an_entry_that_is_cut_in_mid_run_is_fetched_again(farm, fetcher):
    ref = farm.store(DATA)
    path = await fetcher.fetch(ref)
    path.chmod(0o600)
    os.truncate(path, 1000)
    assert (await fetcher.fetch(ref)).read_bytes() == DATA
    assert fetcher.cache.stats().damaged == 1


async def test_a_second_use_is_a_hit(farm, fetcher):
    ref = farm.store(DATA)
    for _ in range(3):
        await fetcher.fetch(ref)
    stats = fetcher.cache.stats()
    assert (stats.hits, stats.misses, stats.served_bytes) == (2, 1, 2 * len(DATA))


async def test_what_is_wished_for_comes_by_itself_and_is_then_a_hit(farm, fetcher):
    refs = [blob(farm, number) for number in range(3)]
    fetcher.prefetch(refs)
    await until(lambda: all(ref.digest in fetcher.cache for ref in refs), 30)
    asked = len(farm.requests)
    await asyncio.gather(*(fetcher.fetch(ref) for ref in refs))
    assert len(farm.requests) == asked == 3
    assert fetcher.cache.stats().misses == 0


async def test_the_newest_wishes_come_first(farm, fetcher):
    old, new = blob(farm, 1), blob(farm, 2)
    fetcher.prefetch([old])
    fetcher.prefetch([new])
    await until(lambda: old.digest in fetcher.cache, 30)
    assert fetcher.cache.digests(2) == (old.digest, new.digest)


async def test_a_fetch_joins_what_is_fetched_ahead(farm, fetcher):
    ref = farm.store(DATA)
    async with holding(farm):
        fetcher.prefetch([ref])
        await farm.asked.wait()
        waiting = asyncio.create_task(fetcher.fetch(ref))
    assert (await waiting).read_bytes() == DATA
    assert len(farm.requests) == 1


async def test_whoever_waits_goes_first_and_the_wish_goes_on_afterwards(farm, fetcher):
    wished, needed = farm.store(DATA), blob(farm, 1)
    farm.gate.clear()
    fetcher.prefetch([wished])
    await farm.asked.wait()
    farm.asked.clear()
    waiting = asyncio.create_task(fetcher.fetch(needed))
    await farm.asked.wait()
    await until(lambda: list(fetcher.arrived_bytes) == [needed.digest], 30)
    assert len(farm.requests) == 2  # the wish does not come back while it waits
    farm.gate.set()
    await waiting
    await until(lambda: wished.digest in fetcher.cache, 30)


async def test_a_fetch_that_is_cancelled_leaves_the_wish(farm, fetcher):
    ref = farm.store(DATA)
    farm.gate.clear()
    fetcher.prefetch([ref])
    await farm.asked.wait()
    waiting = asyncio.create_task(fetcher.fetch(ref))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    farm.gate.set()
    await until(lambda: ref.digest in fetcher.cache, 30)


async def test_wishes_can_be_forgotten(farm, fetcher):
    ref = farm.store(DATA)
    farm.gate.clear()
    fetcher.prefetch([ref])
    await farm.asked.wait()
    fetcher.stop_prefetching()
    await until(lambda: not fetcher.arrived_bytes, 30)
    farm.gate.set()
    assert ref.digest not in fetcher.cache
    fetcher.prefetch([ref])
    await until(lambda: ref.digest in fetcher.cache, 30)


async def test_a_wish_that_cannot_be_had_does_not_hold_up_the_next(farm, fetcher):
    gone, damaged, there = BlobRef(digest=digest_bytes(b"gone"), size_bytes=4), blob(farm, 1), blob(farm, 2)
    farm.blobs[damaged.digest] = b"evil" + farm.blobs[damaged.digest][4:]
    fetcher.prefetch([gone, damaged, there])
    await until(lambda: there.digest in fetcher.cache, 30)
    with pytest.raises(NotFound):
        await fetcher.fetch(gone)


async def test_a_wish_evicts_nothing_that_was_used_lately(farm, transfers, tmp_path):
    cache = BlobCache(tmp_path, 2500)
    async with Fetcher(cache, transfers) as fetcher:
        held, large, small = blob(farm, 1), blob(farm, 2, 2000), blob(farm, 3)
        await fetcher.fetch(held)
        fetcher.prefetch([large, small])
        await until(lambda: small.digest in cache, 30)
        assert held.digest in cache
        assert large.digest not in cache
        await fetcher.fetch(large)  # what is needed does evict
        with cache.pinned([large.digest]), pytest.raises(CacheFull):
            await fetcher.fetch(held)


async def test_an_assignment_brings_what_the_next_one_will_need(farm, start_agent, home):
    later = farm.store(b"later")
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task()).model_copy(update={"prefetch": (later,)}))
        await peer.acknowledge(await peer.expect(Result))
        await until((home / "cache" / later.digest[:2] / later.digest).exists, 30)


async def test_the_farm_may_say_at_any_time_what_will_be_needed(farm, start_agent, home):
    later = farm.store(b"later")
    async with start_agent():
        peer = await joined(farm)
        await peer.send(Prefetch(blobs=(later,)))
        await until((home / "cache" / later.digest[:2] / later.digest).exists, 30)


def flip_a_byte(path):
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


@asynccontextmanager
async def holding(farm):
    """Keep the farm from answering downloads for the length of a block."""
    farm.gate.clear()
    try:
        yield
    finally:
        farm.gate.set()


async def test_what_comes_along_with_references_counts_as_received(farm, fetcher, transfers):
    fetcher.note_carried((BlobRef.carrying(b"12345"), blob(farm, 1), BlobRef.carrying(b"67")))
    assert transfers.tally.received_bytes == 7
