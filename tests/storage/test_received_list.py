"""The list beside an unfinished upload claims what was put down, all of it, and nothing more, wherever it was cut."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ranges import ByteRange, ByteRanges
from storage.received_list import ReceivedList

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
