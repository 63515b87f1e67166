"""What every blob store must do, whatever keeps it. A new implementation joins by a line in ``MAKERS``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound
from storage.blobs import FolderBlobStore
from storage.errors import BlobTooLarge
from storage.ports.blob_store import BlobStore
from tests.contract.holds import holds

Maker = Callable[[Path], BlobStore]
MAKERS: dict[str, Maker] = {"folder": lambda folder: FolderBlobStore(folder / "blobs")}
TRAVERSALS = [
    "",
    "..",
    "../" * 20 + "etc/passwd",
    "/etc/passwd",
    "A" * 64,
    "a" * 63,
    "a" * 64 + "\n",
    "a" * 65,
    "ä" * 64,
]


@pytest.fixture(params=MAKERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MAKERS[request.param](tmp_path)


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@holds("what is stored MUST come back whole")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000))
def test_bytes_come_back_by_their_digest(store: BlobStore, data: bytes) -> None:
    ref = store.put_bytes(data)
    assert (ref.digest, ref.size_bytes, ref.inline) == (digest_bytes(data), len(data), None)
    assert store.read(ref.digest) == data
    assert store.path(ref.digest).read_bytes() == data
    assert store.size(ref.digest) == len(data)
    assert store.has(ref.digest)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_buffer_can_be_stored(store: BlobStore, kind: type[bytearray | memoryview]) -> None:
    assert store.read(store.put_bytes(kind(b"some bytes")).digest) == b"some bytes"


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 3], [2**20], [700_000] * 5, [2**20 + 1, 1]])
async def test_a_stream_comes_back_whole(store: BlobStore, sizes: list[int]) -> None:
    parts = [bytes([index]) * size for index, size in enumerate(sizes)]
    whole = b"".join(parts)
    ref = await store.put_stream(digest_bytes(whole), _chunks(*parts), max_bytes=len(whole))
    assert (ref.digest, ref.size_bytes) == (digest_bytes(whole), len(whole))
    assert await store.read_async(ref.digest) == whole


@holds("A stream of other bytes, or over the limit, MUST be refused and leave nothing")
async def test_a_stream_of_other_bytes_is_refused(store: BlobStore) -> None:
    digest = digest_bytes(b"promised")
    with pytest.raises(DigestMismatch, match="upload them again"):
        await store.put_stream(digest, _chunks(b"delivered"))
    assert not store.has(digest)
    assert not store.has(digest_bytes(b"delivered"))


async def test_a_stream_over_the_limit_is_refused(store: BlobStore) -> None:
    with pytest.raises(BlobTooLarge, match="10 B that"):
        await store.put_stream(digest_bytes(b"x" * 11), _chunks(b"x" * 5, b"x" * 6), max_bytes=10)
    assert not store.has(digest_bytes(b"x" * 11))


@holds("The error of a broken stream MUST NOT be mistaken for the store's")
async def test_the_error_of_a_broken_stream_is_not_mistaken_for_the_disks(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError, match="went away"):
        await store.put_stream(digest_bytes(b"half and half"), broken())


@holds("storing twice MUST be storing once")
def test_storing_twice_is_storing_once(store: BlobStore) -> None:
    assert store.put_bytes(b"same") == store.put_bytes(b"same")
    assert store.read(digest_bytes(b"same")) == b"same"


async def test_many_may_store_the_same_at_once(store: BlobStore) -> None:
    data = b"z" * 300_000
    digest = digest_bytes(data)
    streams = [store.put_stream(digest, _chunks(data[:1000], data[1000:])) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(store.put_bytes, data) for _ in range(8)]
        refs = await asyncio.gather(*streams, *(asyncio.wrap_future(future) for future in futures))
    assert {ref.digest for ref in refs} == {digest}
    assert store.read(digest) == data


@holds("An absent blob MUST be answered with NotFound, or with false")
def test_an_absent_blob_is_not_found(store: BlobStore) -> None:
    digest = digest_bytes(b"absent")
    for ask in (store.path, store.size, store.read):
        with pytest.raises(NotFound, match=digest):
            ask(digest)
    assert not store.has(digest)
    assert not store.renew(digest)
    store.delete(digest)


@holds("A name that is no digest MUST reach nothing")
@pytest.mark.parametrize("name", TRAVERSALS)
async def test_a_name_that_is_no_digest_reaches_no_file(store: BlobStore, name: str) -> None:
    for ask in (store.path, store.size, store.read):
        with pytest.raises(NotFound, match="64 lowercase hexadecimal"):
            ask(name)
    with pytest.raises(NotFound):
        await store.put_stream(name, _chunks(b"x"))
    assert not store.has(name)
    assert not store.renew(name)
    store.delete(name)


@holds("which MUST be possible to store again")
def test_a_deleted_blob_is_gone_and_may_come_back(store: BlobStore) -> None:
    ref = store.put_bytes(b"once")
    store.delete(ref.digest)
    assert not store.has(ref.digest)
    store.put_bytes(b"once")
    assert store.has(ref.digest)


@holds("If the block raises it MUST store none")
def test_a_batch_is_stored_at_its_end_or_not_at_all(store: BlobStore) -> None:
    with store.batch() as batch:
        refs = [batch.add([b"one"]), batch.add([b"t", b"wo"])]
    assert [store.read(ref.digest) for ref in refs] == [b"one", b"two"]

    def fails_half_way() -> None:
        with store.batch() as batch:
            batch.add([b"three"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_half_way()
    assert not store.has(digest_bytes(b"three"))


@holds("a blob MUST be readable from ``path`` once it is added, and not count as stored by then")
def test_a_blob_of_an_early_batch_is_read_before_it_is_stored(store: BlobStore) -> None:
    with store.early_batch() as batch:
        ref = batch.add([b"ea", b"rly"])
        assert store.path(ref.digest).read_bytes() == b"early"
        assert not store.has(ref.digest)
    assert store.read(ref.digest) == b"early"

    def fails_half_way() -> None:
        with store.early_batch() as batch:
            batch.add([b"never"])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails_half_way()
    with pytest.raises(NotFound):
        store.path(digest_bytes(b"never"))


@holds("damaged bytes MUST NOT be given out", "MUST leave an intact one")
def test_damage_is_found_and_can_be_mended(store: BlobStore) -> None:
    ref, intact = store.put_bytes(b"some bytes"), store.put_bytes(b"intact")
    path = store.path(ref.digest)
    path.chmod(0o600)
    path.write_bytes(b"rotten bytes")
    for ask in (store.read, store.verified):
        with pytest.raises(DigestMismatch):
            ask(ref.digest)
    assert [store.drop_if_damaged(one.digest) for one in (ref, intact)] == [True, False]
    assert not store.has(ref.digest)
    assert store.read(store.put_bytes(b"some bytes").digest) == b"some bytes"
    assert store.verified(intact.digest).read_bytes() == b"intact"


@holds("those MUST come first of which nobody has wanted anything for longest")
def test_the_list_begins_with_what_nobody_wanted_for_longest(store: BlobStore) -> None:
    refs = [store.put_bytes(data) for data in (b"a", b"bb", b"ccc")]
    for age, ref in zip((10, 30, 20), refs, strict=True):
        at = store.path(ref.digest).stat().st_mtime - age
        os.utime(store.path(ref.digest), (at, at))
    assert [blob.size_bytes for blob in store.list_blobs()] == [2, 3, 1]


def test_a_dry_run_removes_nothing(store: BlobStore) -> None:
    ref = store.put_bytes(b"lost")
    now = store.path(ref.digest).stat().st_mtime + 3600
    assert store.collect(set(), 60, now, dry_run=True).count == 1
    assert store.has(ref.digest)


class TestCollect:
    """Garbage collection, with ``now`` an hour after the blobs were stored."""

    @holds("It MUST leave what is referenced, what is younger")
    def test_removes_what_nothing_refers_to(self, store: BlobStore) -> None:
        kept, lost = store.put_bytes(b"kept"), [store.put_bytes(b"lost"), store.put_bytes(b"lost too")]
        now = store.path(kept.digest).stat().st_mtime + 3600
        collected = store.collect({kept.digest}, older_than_seconds=60, now=now)
        assert (collected.count, collected.bytes) == (2, 12)
        assert store.has(kept.digest)
        assert not any(store.has(ref.digest) for ref in lost)
        assert store.collect({kept.digest}, older_than_seconds=60, now=now).count == 0

    def test_may_look_at_some_names_only(self, store: BlobStore) -> None:
        named, other = store.put_bytes(b"named"), store.put_bytes(b"other")
        now = store.path(named.digest).stat().st_mtime + 3600
        among = [named.digest, digest_bytes(b"absent"), "../../etc/passwd"]
        assert store.collect(set(), 60, now, among).count == 1
        assert (store.has(named.digest), store.has(other.digest)) == (False, True)

    def test_leaves_the_young_alone(self, store: BlobStore) -> None:
        ref = store.put_bytes(b"young")
        stored_at = store.path(ref.digest).stat().st_mtime
        assert store.collect(set(), older_than_seconds=60, now=stored_at + 59).count == 0
        assert store.has(ref.digest)

    @holds("if so it MUST count as just stored")
    @pytest.mark.parametrize("how", ["put again", "renewed"])
    def test_what_is_asked_for_is_young_again(self, store: BlobStore, how: str) -> None:
        ref = store.put_bytes(b"old")
        now = store.path(ref.digest).stat().st_mtime
        os.utime(store.path(ref.digest), (now - 7200, now - 7200))
        assert store.renew(ref.digest) if how == "renewed" else store.put_bytes(b"old")
        assert store.collect(set(), older_than_seconds=3600, now=now).count == 0
        assert store.has(ref.digest)
