"""Parts of a blob on their way to its file: each byte at its place, once, however they are cut and refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from protocol.errors import Unavailable
from protocol.ranges import ByteRange
from storage import part_writer
from storage.errors import NoUpload
from storage.part_writer import PartWriter, write_part
from storage.partial_blob import PartialBlob

SIZE = 300
DATA = bytes(n % 251 for n in range(SIZE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


def partial_in(folder: Path, data: bytes = DATA) -> PartialBlob:
    return PartialBlob.create(folder, digest_bytes(data), len(data))


def file_of(partial: PartialBlob) -> bytes:
    return (partial.folder / f"{partial.name}.part").read_bytes()


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


_parts = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))


@given(parts=st.lists(st.tuples(_parts, st.lists(st.integers(0, SIZE), max_size=5)), max_size=8))
def test_overlapping_parts_in_any_order_give_the_bytes_and_the_ranges(
    folder: Path, parts: list[tuple[tuple[int, int], list[int]]]
) -> None:
    partial, expected = partial_in(folder), bytearray(SIZE)
    here = set[int]()
    for (start, end), cuts in parts:
        write_part(partial, start, chunks_of(DATA[start:end], cuts))
        expected[start:end] = DATA[start:end]
        here.update(range(start, end))
    assert file_of(partial) == expected
    assert partial.received_bytes == len(here)
    assert {at for gap in partial.missing() for at in range(*gap)} == set(range(SIZE)) - here
    assert partial.is_complete == (len(here) == SIZE)
    assert PartialBlob.load(folder, partial.digest, SIZE) is not None


@given(at_most=st.integers(1, 50), cuts=st.lists(st.integers(0, SIZE), max_size=10))
def test_a_disk_that_takes_little_at_a_time_gets_all_of_it(folder: Path, at_most: int, cuts: list[int]) -> None:
    pwrite = os.pwrite

    def little(handle: int, pieces: list[memoryview], at: int) -> int:
        return pwrite(handle, b"".join(pieces)[:at_most], at)

    partial = partial_in(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", little)
        write_part(partial, 0, chunks_of(DATA, cuts))
    assert file_of(partial) == DATA


@pytest.mark.parametrize("count", [1, 63, 64, 65, SIZE])
def test_the_system_is_given_no_more_pieces_than_it_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    pieces: list[int] = []
    pwritev = os.pwritev

    def counting(handle: int, buffers: list[memoryview], at: int) -> int:
        pieces.append(len(buffers))
        return pwritev(handle, buffers, at)

    monkeypatch.setattr(os, "pwritev", counting)
    partial = partial_in(folder)
    size = SIZE // count
    write_part(partial, 0, [DATA[n * size : (n + 1) * size] for n in range(count)])
    assert pieces == [count if count <= 64 else 1]
    assert file_of(partial)[: size * count] == DATA[: size * count]


def test_what_is_here_is_not_written_again(folder: Path) -> None:
    """The first bytes of a place stay: what was hashed is what the file holds."""
    partial = partial_in(folder)
    write_part(partial, 10, [b"A" * 10])
    write_part(partial, 0, [b"B" * 30])
    assert file_of(partial)[:31] == b"B" * 10 + b"A" * 10 + b"B" * 10 + b"\0"


def test_what_another_thread_writes_now_is_left_to_it(folder: Path) -> None:
    partial = partial_in(folder)
    with partial.claimed(0, 10) as gaps:
        assert gaps == [ByteRange(0, 10)]
        write_part(partial, 5, [b"C" * 10])
    assert list(partial.missing()) == [ByteRange(0, 10), ByteRange(15, SIZE)]
    assert file_of(partial)[:16] == b"\0" * 10 + b"C" * 5 + b"\0"


@pytest.mark.parametrize(("start", "size"), [(SIZE, 1), (SIZE - 1, 2), (10**12, 1)])
def test_bytes_past_the_end_are_refused_and_nothing_grows(folder: Path, start: int, size: int) -> None:
    partial = partial_in(folder)
    with pytest.raises(ValueError, match=f"a blob of {SIZE} bytes has none at {start + size - 1}"):
        write_part(partial, start, [b"x" * size])
    assert len(file_of(partial)) == SIZE
    assert partial.received_bytes == 0


def test_a_closed_writer_takes_no_more_and_closes_twice(folder: Path) -> None:
    writer = PartWriter(partial_in(folder))
    writer.close()
    writer.close()
    with pytest.raises(NoUpload):
        writer.write(0, [b"late"])


def test_a_dropped_upload_takes_no_more_and_gives_no_files(folder: Path) -> None:
    partial = partial_in(folder)
    with PartWriter(partial) as writer:
        assert partial.drop()
        with pytest.raises(NoUpload):
            writer.write(0, [b"late"])
    with pytest.raises(NoUpload):
        PartWriter(partial)


def test_no_descriptor_stays_open(folder: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    partial, before = partial_in(folder), descriptors()
    for _ in range(5):
        write_part(partial, 0, [DATA])
    (folder / f"{partial.name}.ranges").unlink()
    with pytest.raises(Unavailable):
        PartWriter(partial)
    assert descriptors() == before


def test_a_list_that_cannot_be_written_claims_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = partial_in(folder)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(Unavailable, match="free some"):
            write_part(partial, 0, [DATA])
    assert partial.received_bytes == 0
    write_part(partial, 0, [DATA])  # and who tries again may write
    assert partial.is_complete


class TestFlushing:
    """The disk begins with large stretches before the sync at the end asks for all of them."""

    @pytest.fixture
    def flushed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
        stretches: list[tuple[int, int]] = []
        monkeypatch.setattr(part_writer, "_FLUSHED_AT_ONCE_BYTES", 100)
        monkeypatch.setattr(os, "posix_fadvise", lambda _, start, size, __: stretches.append((start, start + size)))
        return stretches

    def test_bytes_that_follow_one_another_are_one_stretch(self, folder: Path, flushed: list[tuple[int, int]]) -> None:
        with PartWriter(partial_in(folder)) as writer:
            for start in range(0, SIZE, 40):
                writer.write(start, [DATA[start : start + 40]])
        assert flushed == [(0, 120), (120, 240)]

    def test_a_jump_begins_a_new_stretch(self, folder: Path, flushed: list[tuple[int, int]]) -> None:
        with PartWriter(partial_in(folder)) as writer:
            writer.write(0, [DATA[:90]])
            writer.write(150, [DATA[150:240]])
            assert flushed == []
            writer.write(240, [DATA[240:250]])
        assert flushed == [(150, 250)]

    def test_a_system_without_it_goes_without(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(part_writer, "_FLUSHED_AT_ONCE_BYTES", 1)
        monkeypatch.delattr(os, "posix_fadvise")
        partial = partial_in(folder)
        write_part(partial, 0, [DATA])
        assert partial.is_complete
