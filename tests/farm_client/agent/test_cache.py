import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.cache import BlobCache
from farm_client.agent.errors import CacheFull
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch


def put(cache, data):
    digest = digest_bytes(data)
    cache.put(digest, data)
    return digest


def blob(number, size=10):
    return bytes([number]) * size


async def test_a_blob_is_found_by_its_digest(tmp_path):
    cache = BlobCache(tmp_path, 100)
    digest = put(cache, b"data")
    assert (await cache.find(digest)).read_bytes() == b"data"
    assert await cache.find(digest_bytes(b"other")) is None


def test_what_is_not_its_name_is_not_taken_in(tmp_path):
    cache = BlobCache(tmp_path, 100)
    with pytest.raises(DigestMismatch):
        cache.put(digest_bytes(b"data"), b"evil")
    assert cache.used_bytes == 0


def test_the_least_recently_used_goes_first(tmp_path):
    cache = BlobCache(tmp_path, 30)
    first, second, third = (put(cache, blob(n)) for n in range(3))
    cache.ready(first)
    fourth = put(cache, blob(3))
    assert cache.digests(9) == (fourth, first, third)
    assert not cache.path(second).exists()


def test_what_is_pinned_stays(tmp_path):
    cache = BlobCache(tmp_path, 20)
    first = put(cache, blob(1))
    with cache.pinned([first, first]), cache.pinned([first]):
        put(cache, blob(2))
        put(cache, blob(3))
        assert cache.ready(first)
        with pytest.raises(CacheFull, match="--cache-bytes"):
            put(cache, blob(4, 11))
    put(cache, blob(4, 11))
    assert cache.ready(first) is None


def test_a_blob_larger_than_the_cache_is_refused_and_nothing_evicted(tmp_path):
    cache = BlobCache(tmp_path, 20)
    first = put(cache, blob(1))
    with pytest.raises(CacheFull):
        put(cache, blob(2, 21))
    assert cache.ready(first)


async def test_entries_and_their_order_survive_a_restart(tmp_path):
    cache = BlobCache(tmp_path, 100)
    digests = [put(cache, blob(n)) for n in range(3)]
    for age, digest in enumerate(digests):
        os.utime(cache.path(digest), (age, age))
    (tmp_path / "half.part").write_bytes(b"half")
    again = BlobCache(tmp_path, 20)
    assert again.digests(9) == (digests[2], digests[1])
    assert not (tmp_path / "half.part").exists()


async def test_an_entry_damaged_between_runs_is_removed(tmp_path):
    digest = put(BlobCache(tmp_path, 100), b"data")
    again = BlobCache(tmp_path, 100)
    again.path(digest).write_bytes(b"dada")
    assert again.ready(digest) is None
    assert await again.find(digest) is None
    assert again.used_bytes == 0
    assert not again.path(digest).exists()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=30))
def test_the_bound_holds_and_the_books_agree_with_the_disk(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("cache")
    cache = BlobCache(root, 100)
    for number, size in steps:
        put(cache, blob(number, size))
    on_disk = sum(path.stat().st_size for path in root.glob("*/*"))
    assert cache.used_bytes == on_disk <= 100
