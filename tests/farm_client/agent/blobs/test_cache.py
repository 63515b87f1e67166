import asyncio
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.errors import CacheFull
from farm_client.transfer.partial_file import PartialFile
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
    again = BlobCache(tmp_path, 20)
    assert again.digests(9) == (digests[2], digests[1])


async def test_an_entry_damaged_between_runs_is_removed(tmp_path):
    digest = put(BlobCache(tmp_path, 100), b"data")
    again = BlobCache(tmp_path, 100)
    overwrite(again.path(digest), b"dada")
    assert again.ready(digest) is None
    assert await again.find(digest) is None
    assert again.used_bytes == 0
    assert not again.path(digest).exists()


@pytest.mark.parametrize("harm", ["cut", "written", "replaced", "gone"])
async def test_an_entry_that_is_harmed_in_mid_run_is_not_used(tmp_path, harm):
    notes = []
    cache = BlobCache(tmp_path, 100, notes.append)
    digest = put(cache, b"data")
    path = cache.ready(digest)
    match harm:
        case "cut":
            path.chmod(0o600)
            os.truncate(path, 3)
        case "written":
            overwrite(path, b"dada")
        case "replaced":
            (tmp_path / "other").write_bytes(b"dada")
            (tmp_path / "other").replace(path)
        case "gone":
            path.unlink()
    assert cache.ready(digest) is None
    assert await cache.find(digest) is None
    assert (cache.stats().damaged, cache.used_bytes, len(notes)) == (1, 0, 1)


async def test_an_entry_that_only_looks_different_is_read_again_and_kept(tmp_path):
    cache = BlobCache(tmp_path, 100)
    digest = put(cache, b"data")
    os.utime(cache.path(digest), (1, 1))
    assert cache.ready(digest) is None
    assert await cache.find(digest) is not None
    assert cache.ready(digest) is not None
    assert cache.stats().damaged == 0


async def test_two_that_find_the_same_damage_remove_it_once(tmp_path):
    cache = BlobCache(tmp_path, 100)
    digest = put(cache, b"data")
    overwrite(cache.path(digest), b"dada")
    cache.ready(digest)

    async def find_and_fetch():
        found = await cache.find(digest)
        return found or cache.put(digest, b"data")

    await asyncio.gather(*(find_and_fetch() for _ in range(5)))
    assert cache.ready(digest).read_bytes() == b"data"
    assert cache.stats().damaged == 1


async def test_entries_are_read_only_and_stay_so_over_a_restart(tmp_path):
    cache = BlobCache(tmp_path, 100)
    digest = put(cache, b"data")
    assert mode(cache.path(digest)) == 0o444
    cache.path(digest).chmod(0o644)
    again = BlobCache(tmp_path, 100)
    await again.find(digest)
    assert mode(again.path(digest)) == 0o444


async def test_a_file_made_here_is_taken_in_if_it_is_what_it_should_be(tmp_path):
    cache, made = BlobCache(tmp_path / "cache", 100), tmp_path / "made"
    (tmp_path / "cache").mkdir()
    made.write_bytes(b"weights")
    with pytest.raises(DigestMismatch):
        await cache.adopt_file(digest_bytes(b"other"), made)
    assert made.exists()
    path = await cache.adopt_file(digest_bytes(b"weights"), made)
    assert (path.read_bytes(), mode(path), made.exists()) == (b"weights", 0o444, True)
    assert cache.ready(digest_bytes(b"weights")) == path
    assert cache.used_bytes == 7


async def test_a_link_to_a_file_elsewhere_is_not_taken_in(tmp_path):
    cache, secret, made = BlobCache(tmp_path / "cache", 100), tmp_path / "secret", tmp_path / "made"
    secret.write_bytes(b"secret")
    made.symlink_to(secret)
    with pytest.raises(DigestMismatch):
        await cache.adopt_file(digest_bytes(b"secret"), made)


async def test_a_file_that_does_not_fit_is_not_taken_in(tmp_path):
    cache = BlobCache(tmp_path / "cache", 10)
    (tmp_path / "made").write_bytes(b"x" * 11)
    with pytest.raises(CacheFull):
        await cache.adopt_file(digest_bytes(b"x" * 11), tmp_path / "made")
    assert (tmp_path / "made").exists()


def test_what_is_being_fetched_counts_with_its_whole_size(tmp_path):
    cache = BlobCache(tmp_path, 100)
    first = put(cache, blob(1, 60))
    digest = digest_bytes(b"later")
    with cache.pinned([digest]):
        cache.reserve(digest, 50)
        assert (cache.used_bytes, first in cache, digest in cache) == (50, False, False)
        with pytest.raises(CacheFull):
            cache.make_room(60)
    cache.give_up(digest)
    assert cache.used_bytes == 0


def test_half_a_blob_survives_a_restart_and_is_evicted_like_any_other(tmp_path):
    digest = fetch_half(BlobCache(tmp_path, 100), 50)
    again = BlobCache(tmp_path, 100)
    assert (again.used_bytes, again.digests(9), again.ready(digest)) == (50, (), None)
    partial = PartialFile(again.reserve(digest, 50), 50)
    assert partial.present_bytes == 25
    partial.close()
    put(again, blob(1, 60))
    assert not list(tmp_path.glob("*.*"))


def test_half_a_blob_that_nobody_went_on_with_is_forgotten(tmp_path):
    fetch_half(BlobCache(tmp_path, 100), 50)
    (part,) = tmp_path.glob("*.part")
    os.utime(part, (1, 1))
    (tmp_path / "stray.new").write_bytes(b"stray")
    (tmp_path / "gone.part.json").write_text("{}")
    assert BlobCache(tmp_path, 100).used_bytes == 0
    assert not list(tmp_path.glob("*.*"))


def test_nothing_used_lately_is_evicted_where_it_is_to_be_spared(tmp_path):
    cache = BlobCache(tmp_path, 20)
    first = put(cache, blob(1))
    put(cache, blob(2))
    with pytest.raises(CacheFull):
        cache.make_room(5, sparing_seconds=60)
    assert cache.ready(first)
    cache.make_room(5)


def test_what_was_evicted_is_counted(tmp_path):
    cache = BlobCache(tmp_path, 20)
    for number in range(4):
        put(cache, blob(number))
    stats = cache.stats()
    assert (stats.entries, stats.used_bytes, stats.evictions, stats.evicted_bytes) == (2, 20, 2, 20)
    assert "2 evicted" in stats.in_words()


def test_the_hit_rate_of_nothing_is_nothing():
    assert CacheStats().hit_rate == 0
    assert CacheStats(hits=3, misses=1).hit_rate == 0.75


def fetch_half(cache, size):
    digest = digest_bytes(b"half")
    partial = PartialFile(cache.reserve(digest, size), size)
    partial.write(0, b"x" * (size // 2))
    partial.close()
    return digest


def overwrite(path, data):
    path.chmod(0o600)
    path.write_bytes(data)


def mode(path):
    return path.stat().st_mode & 0o777


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=30))
def test_the_bound_holds_and_the_books_agree_with_the_disk(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("cache")
    cache = BlobCache(root, 100)
    for number, size in steps:
        put(cache, blob(number, size))
    on_disk = sum(path.stat().st_size for path in root.glob("*/*"))
    assert cache.used_bytes == on_disk <= 100
