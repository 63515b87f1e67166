"""What only a folder can get wrong: leftovers, full disks, damage, and what is on the disk when."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, Unavailable
from storage.blobs import FolderBlobStore


@pytest.fixture
def store(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


async def _chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_the_layout_on_disk(store: FolderBlobStore, tmp_path: Path) -> None:
    ref = store.put_bytes(b"laid out")
    assert _files(tmp_path) == [tmp_path / "blobs" / ref.digest[:2] / ref.digest]


def test_leftovers_of_a_crash_are_removed_at_the_next_start(store: FolderBlobStore, tmp_path: Path) -> None:
    kept = store.put_bytes(b"kept")
    (tmp_path / "blobs" / "tmp" / "tmpabc").write_bytes(b"half a bl")
    again = FolderBlobStore(tmp_path / "blobs")
    assert _files(tmp_path) == [again.path(kept.digest)]


@pytest.mark.parametrize("damage", [b"", b"xhole", b"whole and more"])
async def test_damage_is_noticed_at_reading(store: FolderBlobStore, damage: bytes) -> None:
    ref = store.put_bytes(b"whole")
    store.path(ref.digest).write_bytes(damage)
    with pytest.raises(DigestMismatch, match="damaged"):
        await store.read_async(ref.digest)


def test_a_truncated_blob_is_mended_by_putting_it_again(store: FolderBlobStore) -> None:
    ref = store.put_bytes(b"whole")
    store.path(ref.digest).write_bytes(b"who")
    assert store.put_bytes(b"whole") == ref
    assert store.read(ref.digest) == b"whole"


async def test_a_refused_or_abandoned_stream_leaves_nothing(store: FolderBlobStore, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch):
        await store.put_stream(digest_bytes(b"a"), _chunks(b"b"))
    arrived = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x" * 2**21
        arrived.set()
        await asyncio.Event().wait()

    upload = asyncio.ensure_future(store.put_stream(digest_bytes(b"c"), stuck()))
    await arrived.wait()
    assert len(_files(tmp_path)) == 1
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert _files(tmp_path) == []


@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EIO, errno.EROFS])
async def test_a_disk_that_refuses(
    store: FolderBlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refuse(_handle: int) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(Unavailable, match=r"cannot use .*blobs"):
        store.put_bytes(b"data")
    with pytest.raises(Unavailable, match=r"cannot use .*blobs"):
        await store.put_stream(digest_bytes(b"data"), _chunks(b"data"))
    assert _files(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield mount
    subprocess.run(["umount", mount], check=True)


async def test_a_full_disk_refuses_the_blob_and_keeps_the_others(tiny_disk: Path) -> None:
    store = FolderBlobStore(tiny_disk / "blobs")
    kept = store.put_bytes(b"k" * 50_000)
    big = b"b" * 400_000
    with pytest.raises(Unavailable, match="no space is left"):
        store.put_bytes(big)
    with pytest.raises(Unavailable, match="no space is left"):
        await store.put_stream(digest_bytes(big), _chunks(big))
    assert _files(tiny_disk) == [store.path(kept.digest)]
    assert store.put_bytes(b"s" * 50_000).size_bytes == 50_000
    assert store.read(kept.digest) == b"k" * 50_000


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot use"):
        FolderBlobStore(tmp_path / "file" / "blobs")


class TestBatch:
    """Several blobs that the disk syncs together."""

    def test_blobs_in_pieces_of_any_size_come_back_whole(self, store: FolderBlobStore) -> None:
        large = os.urandom(5 * 2**20 + 3)
        with store.batch() as batch:
            refs = [batch.add([]), batch.add([b"", b"pie", bytearray(b"ces")]), batch.add([memoryview(large), b"end"])]
        assert [store.read(ref.digest) for ref in refs] == [b"", b"pieces", large + b"end"]
        assert [ref.digest for ref in refs] == [
            digest_bytes(b""),
            digest_bytes(b"pieces"),
            digest_bytes(large + b"end"),
        ]

    def test_a_blob_can_be_written_as_a_file(self, store: FolderBlobStore) -> None:
        with store.batch() as batch, batch.file() as new:
            assert new.write(b"one ") == 4
            new.write(b"two")
        assert store.read(new.ref.digest) == b"one two"

    def test_nothing_has_a_name_before_the_end(self, store: FolderBlobStore) -> None:
        with store.batch() as batch:
            ref = batch.add([b"early"])
            assert not store.has(ref.digest)
        assert store.has(ref.digest)

    def test_what_is_stored_already_or_comes_twice_is_stored_once(self, store: FolderBlobStore, tmp_path: Path) -> None:
        known = store.put_bytes(b"known")
        with store.batch() as batch:
            assert batch.add([b"kno", b"wn"]) == known
            new = [batch.add([b"new"]), batch.add([b"new"])]
        assert sorted(_files(tmp_path)) == sorted({store.path(known.digest), store.path(new[0].digest)})

    def test_a_batch_that_fails_stores_nothing(self, store: FolderBlobStore, tmp_path: Path) -> None:
        def broken() -> Iterator[bytes]:
            yield b"half"
            raise RuntimeError("the source broke")

        def store_three() -> None:
            with store.batch() as batch:
                batch.add([b"whole"])
                batch.add(broken())

        with pytest.raises(RuntimeError, match="source broke"):
            store_three()
        assert _files(tmp_path) == []


def test_verified_is_the_file_of_an_intact_blob_only(store: FolderBlobStore) -> None:
    ref = store.put_bytes(os.urandom(3 * 2**20))
    path = store.verified(ref.digest)
    assert digest_bytes(path.read_bytes()) == ref.digest
    os.truncate(path, 2**20)
    with pytest.raises(DigestMismatch, match="damaged"):
        store.verified(ref.digest)
