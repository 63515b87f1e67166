"""The folder of unfinished uploads: taken up by the next process, settled into blobs, and cleared of what rests."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound, Unavailable
from protocol.ranges import ByteRange
from storage.blobs import FolderBlobStore
from storage.part_writer import write_part
from storage.partial_blob import PartialBlob
from storage.uploads import UPLOADS, UploadFolder

DATA = b"some bytes of a blob" * 10
DIGEST = digest_bytes(DATA)
Idle = tuple[UploadFolder, PartialBlob, float]


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / UPLOADS


@pytest.fixture
def uploads(root: Path, blobs: FolderBlobStore) -> UploadFolder:
    return UploadFolder(root, blobs)


def test_a_complete_upload_becomes_a_blob_and_leaves_nothing(
    uploads: UploadFolder, blobs: FolderBlobStore, root: Path
) -> None:
    partial = uploads.open(DIGEST, len(DATA))
    assert uploads.open(DIGEST, len(DATA)) is partial is uploads.find(DIGEST, len(DATA))
    write_part(partial, 0, [DATA[:50]])
    assert not uploads.settle(partial)
    write_part(partial, 50, [DATA[50:]])
    assert uploads.settle(partial)
    assert blobs.read(DIGEST) == DATA
    assert (uploads.find(DIGEST, len(DATA)), uploads.all(), list(root.iterdir())) == (None, [], [])
    assert not uploads.settle(partial), "it is done already"


def test_a_blob_made_of_an_old_upload_counts_as_just_stored(
    uploads: UploadFolder, blobs: FolderBlobStore, root: Path
) -> None:
    partial = uploads.open(DIGEST, len(DATA))
    write_part(partial, 0, [DATA])
    (data,) = root.glob("*.part")
    now = data.stat().st_mtime
    os.utime(data, (now - 7200, now - 7200))
    assert uploads.settle(partial)
    assert blobs.collect(set(), older_than_seconds=3600, now=now).count == 0


def test_the_next_process_takes_up_what_is_here(uploads: UploadFolder, blobs: FolderBlobStore, root: Path) -> None:
    write_part(uploads.open(DIGEST, len(DATA)), 20, [DATA[20:60]])
    again = UploadFolder(root, FolderBlobStore(root.parent))
    (partial,) = again.all()
    assert (partial.digest, partial.size_bytes) == (DIGEST, len(DATA))
    assert partial.missing() == [ByteRange(0, 20), ByteRange(60, len(DATA))]


def test_what_cannot_be_used_is_removed_at_the_start(uploads: UploadFolder, blobs: FolderBlobStore, root: Path) -> None:
    write_part(uploads.open(DIGEST, len(DATA)), 0, [DATA[:5]])
    other = digest_bytes(b"other")
    (root / f"{other}-5.part").write_bytes(b"12345")
    (root / f"{other}-6.ranges").write_bytes(b"0-5\n")
    (root / "stranger.txt").write_bytes(b"?")
    again = UploadFolder(root, blobs)
    assert [partial.digest for partial in again.all()] == [DIGEST]
    assert sorted(path.suffix for path in root.iterdir()) == [".part", ".ranges"]


def test_who_lies_about_the_size_spoils_nobody_elses_upload(uploads: UploadFolder, blobs: FolderBlobStore) -> None:
    liar, honest = uploads.open(DIGEST, 10), uploads.open(DIGEST, len(DATA))
    write_part(liar, 0, [DATA[:10]])
    write_part(honest, 0, [DATA])
    with pytest.raises(DigestMismatch):
        uploads.settle(liar)
    assert uploads.settle(honest)
    assert blobs.read(DIGEST) == DATA


def test_a_name_that_is_no_digest_makes_no_file(uploads: UploadFolder, root: Path) -> None:
    for name in ("", "..", "../../x", "A" * 64, "a" * 64 + "\n"):
        with pytest.raises(NotFound, match="64 lowercase hexadecimal"):
            uploads.open(name, 5)
    assert not list(root.iterdir())


def test_only_one_of_many_settles(uploads: UploadFolder, blobs: FolderBlobStore) -> None:
    partial = uploads.open(DIGEST, len(DATA))
    write_part(partial, 0, [DATA])
    barrier = threading.Barrier(8)

    def settle(_number: int) -> bool:
        barrier.wait(30)
        return uploads.settle(partial)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(settle, range(8))) == 1
    assert blobs.read(DIGEST) == DATA


def test_what_is_being_checked_is_not_dropped(
    uploads: UploadFolder, blobs: FolderBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = uploads.open(DIGEST, len(DATA))
    write_part(partial, 0, [DATA])
    real, dropped = os.fsync, []

    def meddling(handle: int) -> None:
        if not dropped:
            dropped.append(partial.is_checked)
            dropped.append(uploads.drop(partial))
            dropped.append(uploads.collect(-1.0, 10**10).count)
        real(handle)

    monkeypatch.setattr("os.fsync", meddling)
    assert uploads.settle(partial)
    assert dropped == [True, False, 0]
    assert blobs.read(DIGEST) == DATA


class TestCollect:
    """Clearing away, by the time since the last byte."""

    @pytest.fixture
    def idle(self, uploads: UploadFolder, root: Path, blobs: FolderBlobStore) -> Idle:
        """An upload whose last byte came two hours before the time that is given."""
        write_part(uploads.open(DIGEST, len(DATA)), 0, [DATA[:5]])
        (listed,) = root.glob("*.ranges")
        now = listed.stat().st_mtime
        os.utime(listed, (now - 7200, now - 7200))
        again = UploadFolder(root, blobs)
        return again, again.all()[0], now

    def test_takes_what_rests_too_long(self, idle: Idle, root: Path) -> None:
        uploads, _, now = idle
        assert uploads.collect(7300, now).count == 0
        collected = uploads.collect(7100, now)
        assert (collected.count, collected.bytes) == (1, 5)
        assert (uploads.all(), list(root.iterdir())) == ([], [])

    def test_spares_what_is_under_way(self, idle: Idle) -> None:
        uploads, partial, now = idle
        assert uploads.collect(0, now, spared={partial.name}).count == 0
        write_part(partial, 5, [DATA[5:6]])
        assert uploads.collect(3600, now).count == 0, "a byte just came"


def test_a_folder_that_cannot_be_made_is_explained(blobs: FolderBlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot use"):
        UploadFolder(tmp_path / "file" / UPLOADS, blobs)
