import asyncio
from contextlib import asynccontextmanager

import pytest

from farm_client.agent.address import parse_address
from farm_client.agent.backoff import RetryPolicy
from farm_client.agent.cache import BlobCache
from farm_client.agent.fetcher import Fetcher
from farm_client.agent.transfers import Transfers
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound, Unavailable
from protocol.tasks import BlobRef

AT_ONCE = RetryPolicy(first_seconds=0.0, longest_seconds=0.0, tries=4)
DATA = bytes(range(256)) * 1000


@pytest.fixture
async def transfers(farm):
    transfers = Transfers(parse_address(farm.url), AT_ONCE)
    yield transfers
    await transfers.aclose()


@pytest.fixture
def fetcher(transfers, tmp_path):
    return Fetcher(BlobCache(tmp_path, 10_000_000), transfers)


async def test_a_cut_download_goes_on_where_it_was_cut(farm, fetcher):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [100_000, 50_000]
    assert (await fetcher.fetch(ref)).read_bytes() == DATA
    assert farm.requests == [("GET", None), ("GET", "bytes=100000-"), ("GET", "bytes=150000-")]


async def test_a_download_that_never_ends_is_given_up(farm, fetcher):
    ref = farm.store(DATA)
    farm.cut_after_bytes = [10] * 4
    with pytest.raises(Unavailable, match="4 tries"):
        await fetcher.fetch(ref)
    assert not any(fetcher.cache.partial_path(ref.digest).parent.glob("*.part"))


async def test_a_damaged_download_is_fetched_once_more(farm, fetcher):
    ref = farm.store(DATA)
    farm.blobs[ref.digest] = b"evil" + DATA[4:]
    with pytest.raises(DigestMismatch, match="twice"):
        await fetcher.fetch(ref)
    assert len(farm.requests) == 2


async def test_a_blob_that_the_farm_does_not_have_is_not_asked_for_again(farm, fetcher):
    with pytest.raises(NotFound):
        await fetcher.fetch(BlobRef(digest=digest_bytes(b"gone"), size_bytes=4))
    assert len(farm.requests) == 1


async def test_requests_at_the_same_time_share_the_download(farm, fetcher):
    ref = farm.store(DATA)
    paths = await asyncio.gather(*(fetcher.fetch(ref) for _ in range(5)))
    assert len(set(paths)) == 1
    assert len(farm.requests) == 1


async def test_one_that_leaves_does_not_end_the_others_download(farm, fetcher):
    ref = farm.store(DATA)
    async with holding(farm):
        leaving, staying = (asyncio.create_task(fetcher.fetch(ref)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    assert (await staying).read_bytes() == DATA


async def test_an_inline_blob_is_kept_without_asking(farm, fetcher):
    ref = BlobRef(digest=digest_bytes(b"small"), size_bytes=5, inline=b"small")
    assert (await fetcher.fetch(ref)).read_bytes() == b"small"
    assert (await fetcher.fetch(ref.model_copy(update={"inline": None}))).read_bytes() == b"small"
    assert farm.requests == []


async def test_a_damaged_entry_of_an_earlier_run_is_fetched_again(farm, transfers, tmp_path):
    ref = farm.store(DATA)
    path = await Fetcher(BlobCache(tmp_path, 10_000_000), transfers).fetch(ref)
    path.write_bytes(b"damaged")
    again = Fetcher(BlobCache(tmp_path, 10_000_000), transfers)
    assert (await again.fetch(ref)).read_bytes() == DATA


async def test_an_upload_survives_failures_and_a_known_blob_is_not_sent(farm, transfers, tmp_path):
    path = tmp_path / "update"
    path.write_bytes(DATA)
    farm.fail_uploads = 2
    await transfers.upload(digest_bytes(DATA), path)
    await transfers.upload(digest_bytes(DATA), path)
    assert farm.blobs[digest_bytes(DATA)] == DATA
    assert [method for method, _ in farm.requests].count("PUT") == 3


@asynccontextmanager
async def holding(farm):
    """Keep the farm from answering downloads for the length of a block."""
    farm.gate.clear()
    try:
        yield
    finally:
        farm.gate.set()
