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

Maker = Callable[[Path], FolderBlobStore]
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
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FolderBlobStore:
    return MAKERS[request.param](tmp_path)


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000))
def test_bytes_come_back_by_their_digest(store: FolderBlobStore, data: bytes) -> None:
    ref = store.put_bytes(data)
    assert (ref.digest, ref.size_bytes, ref.inline) == (digest_bytes(data), len(data), None)
    assert store.read(ref.digest) == data
    assert store.path(ref.digest).read_bytes() == data
    assert store.size(ref.digest) == len(data)
    assert store.has(ref.digest)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_buffer_can_be_stored(store: FolderBlobStore, kind: type[bytearray | memoryview]) -> None:
    assert store.read(store.put_bytes(kind(b"some bytes")).digest) == b"some bytes"


@pytest.mark.parametrize("sizes", [[], [0], [1, 2, 3], [2**20], [700_000] * 5, [2**20 + 1, 1]])
async def test_a_stream_comes_back_whole(store: FolderBlobStore, sizes: list[int]) -> None:
    parts = [bytes([index]) * size for index, size in enumerate(sizes)]
    whole = b"".join(parts)
    ref = await store.put_stream(digest_bytes(whole), _chunks(*parts), max_bytes=len(whole))
    assert (ref.digest, ref.size_bytes) == (digest_bytes(whole), len(whole))
    assert await store.read_async(ref.digest) == whole


async def test_a_stream_of_other_bytes_is_refused(store: FolderBlobStore) -> None:
    digest = digest_bytes(b"promised")
    with pytest.raises(DigestMismatch, match="upload them again"):
        await store.put_stream(digest, _chunks(b"delivered"))
    assert not store.has(digest)
    assert not store.has(digest_bytes(b"delivered"))


async def test_a_stream_over_the_limit_is_refused(store: FolderBlobStore) -> None:
    with pytest.raises(BlobTooLarge, match="10 B that"):
        await store.put_stream(digest_bytes(b"x" * 11), _chunks(b"x" * 5, b"x" * 6), max_bytes=10)
    assert not store.has(digest_bytes(b"x" * 11))


async def test_the_error_of_a_broken_stream_is_not_mistaken_for_the_disks(store: FolderBlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the client went away")

    with pytest.raises(ConnectionResetError, match="went away"):
        await store.put_stream(digest_bytes(b"half and half"), broken())


def test_storing_twice_is_storing_once(store: FolderBlobStore) -> None:
    assert store.put_bytes(b"same") == store.put_bytes(b"same")
    assert store.read(digest_bytes(b"same")) == b"same"


async def test_many_may_store_the_same_at_once(store: FolderBlobStore) -> None:
    data = b"z" * 300_000
    digest = digest_bytes(data)
    streams = [store.put_stream(digest, _chunks(data[:1000], data[1000:])) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(store.put_bytes, data) for _ in range(8)]
        refs = await asyncio.gather(*streams, *(asyncio.wrap_future(future) for future in futures))
    assert {ref.digest for ref in refs} == {digest}
    assert store.read(digest) == data


def test_an_absent_blob_is_not_found(store: FolderBlobStore) -> None:
    digest = digest_bytes(b"absent")
    for ask in (store.path, store.size, store.read):
        with pytest.raises(NotFound, match=digest):
            ask(digest)
    assert not store.has(digest)
    assert not store.renew(digest)
    store.delete(digest)


@pytest.mark.parametrize("name", TRAVERSALS)
async def test_a_name_that_is_no_digest_reaches_no_file(store: FolderBlobStore, name: str) -> None:
    for ask in (store.path, store.size, store.read):
        with pytest.raises(NotFound, match="64 lowercase hexadecimal"):
            ask(name)
    with pytest.raises(NotFound):
        await store.put_stream(name, _chunks(b"x"))
    assert not store.has(name)
    assert not store.renew(name)
    store.delete(name)


def test_a_deleted_blob_is_gone_and_may_come_back(store: FolderBlobStore) -> None:
    ref = store.put_bytes(b"once")
    store.delete(ref.digest)
    assert not store.has(ref.digest)
    store.put_bytes(b"once")
    assert store.has(ref.digest)


class TestCollect:
    """Garbage collection, with ``now`` an hour after the blobs were stored."""

    def test_removes_what_nothing_refers_to(self, store: FolderBlobStore) -> None:
        kept, lost = store.put_bytes(b"kept"), [store.put_bytes(b"lost"), store.put_bytes(b"lost too")]
        now = store.path(kept.digest).stat().st_mtime + 3600
        collected = store.collect({kept.digest}, older_than_seconds=60, now=now)
        assert (collected.count, collected.bytes) == (2, 12)
        assert store.has(kept.digest)
        assert not any(store.has(ref.digest) for ref in lost)
        assert store.collect({kept.digest}, older_than_seconds=60, now=now).count == 0

    def test_may_look_at_some_names_only(self, store: FolderBlobStore) -> None:
        named, other = store.put_bytes(b"named"), store.put_bytes(b"other")
        now = store.path(named.digest).stat().st_mtime + 3600
        among = [named.digest, digest_bytes(b"absent"), "../../etc/passwd"]
        assert store.collect(set(), 60, now, among).count == 1
        assert (store.has(named.digest), store.has(other.digest)) == (False, True)

    def test_leaves_the_young_alone(self, store: FolderBlobStore) -> None:
        ref = store.put_bytes(b"young")
        stored_at = store.path(ref.digest).stat().st_mtime
        assert store.collect(set(), older_than_seconds=60, now=stored_at + 59).count == 0
        assert store.has(ref.digest)

    @pytest.mark.parametrize("how", ["put again", "renewed"])
    def test_what_is_asked_for_is_young_again(self, store: FolderBlobStore, how: str) -> None:
        ref = store.put_bytes(b"old")
        now = store.path(ref.digest).stat().st_mtime
        os.utime(store.path(ref.digest), (now - 7200, now - 7200))
        assert store.renew(ref.digest) if how == "renewed" else store.put_bytes(b"old")
        assert store.collect(set(), older_than_seconds=3600, now=now).count == 0
        assert store.has(ref.digest)
