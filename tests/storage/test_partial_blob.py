"""A blob that comes in pieces: cut anywhere, killed at any time, sent by many at once, it is whole or not there."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, Unavailable
from protocol.ranges import ByteRange, ByteRanges
from storage import partial_blob
from storage.blobs import FolderBlobStore
from storage.errors import NoUpload
from storage.part_writer import PartWriter, write_part
from storage.partial_blob import PartialBlob, PrefixHash, ReceivedList, name_of, parse_name

ROOT = Path(__file__).parents[2]
BLOB = random.Random(4).randbytes(200)
DIGEST = digest_bytes(BLOB)
Keep = Callable[[Path], None]


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, bytes]:
    return {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


def keep_in(kept: dict[str, bytes]) -> Keep:
    def keep(path: Path) -> None:
        kept["blob"] = path.read_bytes()
        path.unlink()

    return keep


def reload(folder: Path, partial: PartialBlob) -> PartialBlob:
    """Take it up as a new process would."""
    again = PartialBlob.load(folder, partial.digest, partial.size_bytes)
    assert again is not None
    return again


def write_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is written into data files from now on."""
    counts: list[int] = []
    real = os.pwritev

    def counting(handle: int, pieces: list[bytes], at: int) -> int:
        count = real(handle, pieces, at)
        if str(Path(f"/proc/self/fd/{handle}").readlink()).endswith(".part"):
            counts.append(count)
        return count

    monkeypatch.setattr("os.pwritev", counting)
    return counts


@pytest.mark.parametrize("part_bytes", [7, 64, 200])
def test_cut_at_every_byte_it_goes_on_from_there(
    folder: Path, kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # hundreds of them, and nothing here asks for durability
    counts = write_counts(monkeypatch)
    for cut in range(len(BLOB) + 1):
        counts.clear()
        partial = PartialBlob.create(folder, DIGEST, len(BLOB))
        for part in ByteRange(0, cut).parts(part_bytes):
            write_part(partial, part.start, [BLOB[part.start : part.end]])
        partial = reload(folder, partial)
        assert partial.missing() == ([ByteRange(cut, len(BLOB))] if cut < len(BLOB) else [])
        for part in ByteRange(cut, len(BLOB)).parts(part_bytes):
            write_part(partial, part.start, [BLOB[part.start : part.end]])
        assert partial.settle(keep_in(kept))
        assert kept.pop("blob") == BLOB
        assert sum(counts) == len(BLOB), "no byte is written twice"
    assert not list(folder.iterdir())


PIECES = st.lists(
    st.tuples(st.integers(0, len(BLOB)), st.integers(0, len(BLOB)), st.integers(1, 60), st.booleans()), max_size=12
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES)
def test_parts_in_any_order_with_restarts_between_are_the_blob(
    folder: Path, kept: dict[str, bytes], pieces: list[tuple[int, int, int, bool]]
) -> None:
    partial, model = PartialBlob.create(folder, DIGEST, len(BLOB)), ByteRanges()
    for one, other, chunk_bytes, restarts in pieces:
        start, end = sorted((one, other))
        write_part(partial, start, [BLOB[part.start : part.end] for part in ByteRange(start, end).parts(chunk_bytes)])
        model.add(start, end)
        if restarts:
            partial = reload(folder, partial)
        assert partial.missing() == list(model.missing(len(BLOB)))
        assert partial.received_bytes == model.total_bytes
    for hole in partial.missing():
        assert not partial.settle(keep_in(kept)), "it is not complete"
        write_part(partial, hole.start, [BLOB[hole.start : hole.end]])
    assert partial.settle(keep_in(kept))
    assert kept.pop("blob") == BLOB


def test_many_threads_with_overlapping_parts_write_each_byte_once(
    folder: Path, kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(3_000_000)
    partial = PartialBlob.create(folder, digest_bytes(data), len(data))
    counts = write_counts(monkeypatch)
    order = random.Random(2)
    starts = [order.randrange(len(data)) for _ in range(60)] + list(range(0, len(data), 200_000))
    order.shuffle(starts)

    def send(start: int) -> None:
        part = data[start : start + 200_000]
        write_part(partial, start, [part[:70_000], part[70_000:]])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(send, starts))
        settled = list(threads.map(lambda _: partial.settle(keep_in(kept)), range(8)))
    assert settled.count(True) == 1
    assert kept["blob"] == data
    assert sum(counts) == len(data)


def test_very_many_tiny_chunks_are_one_write(folder: Path, kept: dict[str, bytes]) -> None:
    data = random.Random(3).randbytes(5000)
    partial = PartialBlob.create(folder, digest_bytes(data), len(data))
    write_part(partial, 0, [data[n : n + 1] for n in range(len(data))])
    assert partial.settle(keep_in(kept))
    assert kept["blob"] == data


def test_wrong_bytes_are_dropped_all_of_them(folder: Path, kept: dict[str, bytes]) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    write_part(partial, 0, [BLOB[:100], b"x" * 100])
    with pytest.raises(DigestMismatch, match="upload them again"):
        partial.settle(keep_in(kept))
    assert partial.is_gone
    assert not kept
    assert not list(folder.iterdir())
    with pytest.raises(NoUpload):
        write_part(partial, 0, [BLOB])


def test_bytes_that_rotted_on_the_disk_are_noticed_after_a_restart(folder: Path, kept: dict[str, bytes]) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    write_part(partial, 0, [BLOB[:150]])
    (data,) = folder.glob("*.part")
    data.write_bytes(b"\0" * len(BLOB))  # as after a power cut: the list knows more than the disk has
    partial = reload(folder, partial)
    write_part(partial, 150, [BLOB[150:]])
    with pytest.raises(DigestMismatch):
        partial.settle(keep_in(kept))


def test_an_empty_blob_is_complete_from_the_start(folder: Path, kept: dict[str, bytes]) -> None:
    partial = PartialBlob.create(folder, digest_bytes(b""), 0)
    assert partial.is_complete
    assert partial.settle(keep_in(kept))
    assert kept["blob"] == b""


def test_bytes_past_the_end_are_a_mistake(folder: Path) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    with pytest.raises(ValueError, match="200 bytes"):
        write_part(partial, 150, [b"x" * 51])
    assert partial.received_bytes == 0


class TestTheListOnDisk:
    """What the sidecar says, and what a crash may have made of it."""

    def test_is_a_line_for_each_write(self, folder: Path) -> None:
        partial = PartialBlob.create(folder, DIGEST, len(BLOB))
        write_part(partial, 10, [BLOB[10:20]])
        write_part(partial, 0, [BLOB[:15]])
        (listed,) = folder.glob("*.ranges")
        assert listed.read_text() == "10-20\n0-10\n"
        assert (folder / f"{DIGEST}-200.part").stat().st_size == len(BLOB)

    def test_a_line_without_its_end_does_not_count_and_is_written_over(self, folder: Path) -> None:
        partial = PartialBlob.create(folder, DIGEST, len(BLOB))
        write_part(partial, 0, [BLOB[:10]])
        (listed,) = folder.glob("*.ranges")
        listed.write_text("0-10\n10-199")
        partial = reload(folder, partial)
        assert partial.missing() == [ByteRange(10, 200)]
        write_part(partial, 10, [BLOB[10:11]])
        assert reload(folder, partial).missing() == [ByteRange(11, 200)]

    @pytest.mark.parametrize("content", ["0-5\nnonsense\n", "5-2\n", "0-201\n", "\udcff\n", "1\n"])
    def test_one_that_cannot_be_is_of_no_use(self, folder: Path, content: str) -> None:
        partial = PartialBlob.create(folder, DIGEST, len(BLOB))
        (listed,) = folder.glob("*.ranges")
        listed.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert PartialBlob.load(folder, partial.digest, partial.size_bytes) is None

    @pytest.mark.parametrize("damage", ["no data", "no list", "another size"])
    def test_files_that_do_not_belong_together_are_of_no_use(self, folder: Path, damage: str) -> None:
        PartialBlob.create(folder, DIGEST, len(BLOB))
        (data,), (listed,) = folder.glob("*.part"), folder.glob("*.ranges")
        if damage == "another size":
            data.write_bytes(b"x")
        else:
            (data if damage == "no data" else listed).unlink()
        assert PartialBlob.load(folder, DIGEST, len(BLOB)) is None


class _FullDisk:
    """A disk that takes ``left`` more bytes, cutting short the write that meets its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self._real = os.pwrite
        monkeypatch.setattr("os.pwrite", self._write)
        monkeypatch.setattr("os.pwritev", lambda handle, pieces, at: self._write(handle, b"".join(pieces), at))

    def _write(self, handle: int, data: bytes, at: int) -> int:
        data = data[: self.left]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= len(data)
        return self._real(handle, data, at)


@pytest.mark.parametrize("left", range(0, 230, 5))
def test_on_a_full_disk_nothing_is_claimed_that_is_not_there(
    folder: Path, kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    disk = _FullDisk(monkeypatch, left)

    def write_all() -> None:
        for part in ByteRange(0, len(BLOB)).parts(40):
            write_part(partial, part.start, [BLOB[part.start : part.end]])

    with pytest.raises(Unavailable, match="no space is left"):
        write_all()
    missing = partial.missing()
    assert reload(folder, partial).missing() == missing
    disk.left = 10**6
    for hole in missing:
        write_part(partial, hole.start, [BLOB[hole.start : hole.end]])
    assert reload(folder, partial).missing() == []
    assert partial.settle(keep_in(kept))
    assert kept["blob"] == BLOB


def test_a_disk_that_cannot_sync_keeps_the_upload(
    folder: Path, kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    write_part(partial, 0, [BLOB])

    def refuse(_handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", refuse)
        with pytest.raises(Unavailable):
            partial.settle(keep_in(kept))
    assert partial.is_complete
    assert partial.settle(keep_in(kept))
    assert kept["blob"] == BLOB


def test_a_late_writer_cannot_reach_the_next_upload_of_the_same_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = PartialBlob.create(folder, DIGEST, len(BLOB))
    begun, go_on, real = threading.Event(), threading.Event(), os.pwritev

    def slow(handle: int, pieces: list[bytes], at: int) -> int:
        begun.set()
        assert go_on.wait(30)
        return real(handle, pieces, at)

    monkeypatch.setattr("os.pwritev", slow)
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write_part, old, 0, [b"x" * 200])
        assert begun.wait(30)
        assert old.drop()
        new = PartialBlob.create(folder, DIGEST, len(BLOB))
        go_on.set()
        with pytest.raises(NoUpload):
            writing.result(30)
    assert new.missing() == [ByteRange(0, 200)]
    (data,) = folder.glob("*.part")
    assert data.read_bytes() == b"\0" * 200
    assert not old.drop(), "it is gone already"


def test_its_name_says_digest_and_size() -> None:
    assert parse_name(name_of(DIGEST, 7)) == (DIGEST, 7)
    for name in ("", DIGEST, f"{DIGEST}-", f"{DIGEST}-x", f"{DIGEST[1:]}-7", f"{DIGEST}-7\n"):
        with pytest.raises(ValueError, match="names no upload"):
            parse_name(name)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.storage.part_writer", str(tmp_path / "blobs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("acknowledged", [1, 20, 300])
def test_what_a_killed_process_acknowledged_is_here(
    tmp_path: Path, writer: subprocess.Popen[str], acknowledged: int
) -> None:
    from tests.storage.part_writer import DATA, UploadFolder

    assert writer.stdout is not None
    said = [writer.stdout.readline() for _ in range(acknowledged)]
    writer.kill()
    said += writer.stdout.read().split("\n")[:-1]  # what it still said; a line cut short does not count
    blobs = FolderBlobStore(tmp_path / "blobs")
    (partial,) = UploadFolder(tmp_path / "blobs" / "uploads", blobs).all()
    promised = ByteRanges(pair for line in said for pair in ByteRanges.parse(line.strip()))
    received = ByteRanges(ByteRanges(partial.missing()).missing(len(DATA)))
    assert all(not list(received.missing(end, start)) for start, end in promised)
    for hole in partial.missing():
        write_part(partial, hole.start, [DATA[hole.start : hole.end]])
    assert partial.settle(lambda path: blobs.adopt(path, partial.digest))
    assert blobs.read(partial.digest) == DATA


def test_a_writer_that_is_closed_writes_nothing_more(folder: Path) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    with PartWriter(partial) as writer:
        writer.write(0, [BLOB[:10]])
    with pytest.raises(NoUpload):
        writer.write(10, [BLOB[10:20]])
    assert partial.missing() == [ByteRange(10, 200)]


def test_closing_waits_for_a_write_that_is_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = PartialBlob.create(folder, DIGEST, len(BLOB))
    begun, go_on, real = threading.Event(), threading.Event(), os.pwritev

    def slow(handle: int, pieces: list[bytes], at: int) -> int:
        begun.set()
        assert go_on.wait(30)
        return real(handle, pieces, at)

    monkeypatch.setattr("os.pwritev", slow)
    writer = PartWriter(partial)
    with ThreadPoolExecutor(2) as threads:
        writing = threads.submit(writer.write, 0, [BLOB])
        assert begun.wait(30)
        closing = threads.submit(writer.close)
        assert not closing.done()
        go_on.set()
        writing.result(30)
        closing.result(30)
    assert partial.is_complete


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_large_blob_is_hashed_and_flushed_on_the_way(
    folder: Path, kept: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    data = random.Random(6).randbytes(20_000_000)
    partial = PartialBlob.create(folder, digest_bytes(data), len(data))
    flushed: list[int] = []
    monkeypatch.setattr("os.posix_fadvise", lambda _handle, _start, count, _advice: flushed.append(count))
    parts = list(ByteRange(0, len(data)).parts(5_000_000))
    if order == "backwards":
        parts.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(parts)
    with PartWriter(partial) as writer:
        for part in parts:
            for piece in part.parts(1_000_000):
                writer.write(piece.start, [data[piece.start : piece.end]])
    assert partial.settle(keep_in(kept))
    assert kept["blob"] == data
    assert order != "forwards" or sum(flushed) > len(data) / 2


BLOCK = 16
STRIDE, AT_ONCE = 4 * BLOCK, 16 * BLOCK
DATA = bytes(range(256)) * 8


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_blob, "_BLOCK_BYTES", BLOCK)
        patch.setattr(partial_blob, "_STRIDE_BYTES", STRIDE)
        patch.setattr(partial_blob, "_AT_ONCE_BYTES", AT_ONCE)
        yield


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("hashed") / "data"
    path.write_bytes(DATA)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


class Reads:
    """How many bytes of the file were asked for, as the hash asks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at_most: int | None = None) -> None:
        self.places: list[tuple[int, int]] = []
        preadv = os.preadv

        def counting(handle: int, buffers: list[memoryview], at: int) -> int:
            count = preadv(handle, [buffer[:at_most] for buffer in buffers], at)
            self.places.append((at, count))
            return count

        monkeypatch.setattr(os, "preadv", counting)

    @property
    def total(self) -> int:
        return sum(count for _, count in self.places)


@given(prefixes=st.lists(st.integers(0, len(DATA)), max_size=20), size=st.integers(0, len(DATA)))
def test_however_the_file_filled_up_the_digest_is_that_of_its_bytes(
    handle: int, prefixes: list[int], size: int
) -> None:
    following = PrefixHash()
    for prefix in sorted(min(prefix, size) for prefix in prefixes):
        following.follow(handle, prefix)
    assert following.hexdigest(handle, size) == digest_bytes(DATA[:size])


def test_each_byte_is_read_once(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    for prefix in range(0, len(DATA), 7):
        following.follow(handle, prefix)
    following.hexdigest(handle, len(DATA))
    assert reads.total == len(DATA)
    assert [at for at, _ in reads.places] == sorted({at for at, _ in reads.places})


def test_less_than_a_stride_is_not_worth_a_thread_s_turn(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, STRIDE - 1)
    assert reads.total == 0
    following.follow(handle, STRIDE)
    assert reads.total == STRIDE
    following.follow(handle, 2 * STRIDE - 1)
    assert reads.total == STRIDE


def test_nobody_is_kept_for_more_than_so_many_bytes_at_once(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, len(DATA))
    assert reads.total == AT_ONCE
    following.follow(handle, len(DATA))
    assert reads.total == 2 * AT_ONCE


def test_a_prefix_that_shrinks_is_not_read_again(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads report in any order: one that knows of less comes after one that knew of more."""
    reads, following = Reads(monkeypatch), PrefixHash()
    following.follow(handle, 2 * STRIDE)
    following.follow(handle, STRIDE)
    assert reads.total == 2 * STRIDE
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)


def test_a_disk_that_gives_little_at_a_time_is_asked_again(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Reads(monkeypatch, at_most=3)
    assert PrefixHash().hexdigest(handle, 100) == digest_bytes(DATA[:100])


def test_a_file_that_was_cut_ends_the_reading_and_has_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(DATA[:100])
    opened = os.open(path, os.O_RDONLY)
    try:
        assert PrefixHash().hexdigest(opened, 1000) == digest_bytes(DATA[:100]) != digest_bytes(DATA[:1000])
    finally:
        os.close(opened)


def test_an_empty_file_has_the_digest_of_nothing(handle: int) -> None:
    assert PrefixHash().hexdigest(handle, 0) == digest_bytes(b"")


def test_a_second_writer_does_not_wait_for_the_one_that_hashes(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def slow(handle: int, buffers: list[memoryview], at: int) -> int:
        entered.set()
        assert go_on.wait(30)
        return preadv(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", slow)
    following = PrefixHash()
    first = threading.Thread(target=following.follow, args=(handle, STRIDE))
    first.start()
    assert entered.wait(30)
    following.follow(handle, 2 * STRIDE)  # comes back at once, or this test hangs
    go_on.set()
    first.join()
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)


def test_a_read_that_fails_leaves_the_hash_usable(handle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    following = PrefixHash()
    following.follow(handle, STRIDE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"):
            following.follow(handle, 2 * STRIDE)
    following.follow(handle, 2 * STRIDE)
    assert following.hexdigest(handle, len(DATA)) == digest_bytes(DATA)


_ranges = st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)).map(lambda pair: ByteRange(pair[0], sum(pair)))
_many = st.lists(_ranges, max_size=12)


@contextmanager
def appending(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_WRONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def written(path: Path, ranges: list[ByteRange]) -> ReceivedList:
    listed = ReceivedList(path)
    listed.create()
    with appending(path) as handle:
        for one in ranges:
            listed.append(handle, one)
    return listed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists") / "a.ranges"


def test_a_new_list_names_no_byte(path: Path) -> None:
    assert list(written(path, []).load()) == []


@given(ranges=_many)
def test_what_was_put_down_is_read_back_in_any_order(path: Path, ranges: list[ByteRange]) -> None:
    written(path, ranges)
    assert ReceivedList(path).load() == ByteRanges(ranges)


@given(ranges=_many, data=st.data())
def test_cut_anywhere_it_names_the_whole_lines_before(path: Path, ranges: list[ByteRange], data: st.DataObject) -> None:
    """A crash may cut the file at any byte. A line that lost its end counts for nothing, however it reads."""
    written(path, ranges)
    text = path.read_bytes()
    kept = text[: data.draw(st.integers(0, len(text)))]
    path.write_bytes(kept)
    assert ReceivedList(path).load() == ByteRanges(ranges[: kept.count(b"\n")])


@given(before=_many, after=_many, data=st.data())
def test_the_next_process_goes_on_over_a_line_without_its_end(
    path: Path, before: list[ByteRange], after: list[ByteRange], data: st.DataObject
) -> None:
    written(path, before)
    text = path.read_bytes()
    path.write_bytes(text[: data.draw(st.integers(0, len(text)))])
    listed = ReceivedList(path)
    expected = listed.load()
    with appending(path) as handle:
        for one in after:
            listed.append(handle, one)
            expected.add(*one)
            assert ReceivedList(path).load() == expected


def test_a_shorter_line_over_a_torn_longer_one_leaves_no_number_of_it_behind(path: Path) -> None:
    path.write_bytes(b"0-10\n1234567-123456789012")
    listed = ReceivedList(path)
    listed.load()
    with appending(path) as handle:
        listed.append(handle, ByteRange(10, 20))
    assert list(ReceivedList(path).load()) == [ByteRange(0, 20)]


def test_threads_that_append_at_once_lose_no_line(path: Path) -> None:
    listed = written(path, [])
    ready = threading.Barrier(4)

    def append(number: int, handle: int) -> None:
        ready.wait()
        for index in range(100):
            start = 2 * (100 * number + index)
            listed.append(handle, ByteRange(start, start + 1))

    with appending(path) as handle:
        threads = [threading.Thread(target=append, args=(number, handle)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = ReceivedList(path).load()
    assert (len(found), found.total_bytes) == (400, 400)


def test_a_disk_that_takes_a_byte_at_a_time_gets_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:1], at))
        written(path, [ByteRange(0, 12345), ByteRange(20000, 20001)])
    assert path.read_bytes() == b"0-12345\n20000-20001\n"


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\n",
        b"0-\n",
        b"-5\n",
        b"5-1\n",
        b"0-10 \n",
        b"0 - 10\n",
        "0-1\u0660\n".encode(),
        b"\xff\xfe\n",
        b"0-1\r\n",
    ],
    ids=repr,
)
def test_what_is_no_list_is_refused_with_the_error_that_its_reader_expects(path: Path, text: str) -> None:
    path.write_bytes(f"0-10\n{text}\n".encode())
    with pytest.raises(ValueError, match=r"is not written like|can't decode|is no range"):
        ReceivedList(path).load()
