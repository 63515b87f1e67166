"""Sets of byte ranges against a plain set of numbers, and Content-Range to the letter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ranges import BadContentRange, ByteRange, ByteRanges, ContentRange

SIZE = 40
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: tuple(sorted(pair))))


def positions(ranges: ByteRanges) -> set[int]:
    return {position for start, end in ranges for position in range(start, end)}


@settings(max_examples=200, deadline=None)
@given(added=RANGES, size=st.integers(0, SIZE + 5), start=st.integers(0, SIZE + 5))
def test_it_is_the_set_of_its_positions(added: list[tuple[int, int]], size: int, start: int) -> None:
    ranges, model = ByteRanges(), set[int]()
    for first, end in added:
        ranges.add(first, end)
        model.update(range(first, end))
    assert positions(ranges) == model
    assert all(r.size_bytes > 0 for r in ranges)
    assert all(left.end < right.start for left, right in pairwise(ranges)), "sorted, and never touching"
    assert ranges.total_bytes == len(model)
    assert ranges.prefix_bytes == next(n for n in range(SIZE + 1) if n not in model)
    assert len(ranges) == len(list(ranges))
    gaps = list(ranges.missing(size, start))
    assert {n for gap in gaps for n in range(*gap)} == set(range(start, size)) - model
    assert all(left.end < right.start for left, right in pairwise(gaps))


@given(added=RANGES)
def test_it_comes_back_from_its_text(added: list[tuple[int, int]]) -> None:
    ranges = ByteRanges(added)
    assert ByteRanges.parse(str(ranges)) == ranges
    assert eval(repr(ranges)) == ranges


@given(added=RANGES)
def test_the_order_of_adding_does_not_matter(added: list[tuple[int, int]]) -> None:
    assert ByteRanges(added) == ByteRanges(reversed(added))


@pytest.mark.parametrize("text", ["5", "a-b", "1-2,", "-1-2", "1-2 3-4", "5-3", "1-2\n", "٣-٤"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"range|written"):
        ByteRanges.parse(text)


@pytest.mark.parametrize(("start", "end"), [(-1, 3), (4, 3)])
def test_an_impossible_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="no range"):
        ByteRanges().add(start, end)


@given(start=st.integers(0, 50), size=st.integers(0, 50), part_bytes=st.integers(1, 60))
def test_parts_are_the_range_again(start: int, size: int, part_bytes: int) -> None:
    parts = list(ByteRange(start, start + size).parts(part_bytes))
    assert [n for part in parts for n in range(*part)] == list(range(start, start + size))
    assert all(0 < part.size_bytes <= part_bytes for part in parts)


@given(start=st.integers(0, 2**50), size=st.integers(1, 2**50), rest=st.integers(0, 2**50))
def test_a_content_range_comes_back_from_its_header(start: int, size: int, rest: int) -> None:
    content = ContentRange(start, start + size, start + size + rest)
    assert ContentRange.parse(str(content)) == content
    assert content.size_bytes == size


def test_the_header_counts_the_last_byte_in() -> None:
    assert str(ContentRange(0, 500, 1234)) == "bytes 0-499/1234"
    assert ContentRange.parse("Bytes 499-499/500") == ContentRange(499, 500, 500)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes 0-4",
        "bytes 0-4/*",
        "bytes */5",
        "bytes 5-4/9",
        "bytes 0-5/5",
        "bytes -1-4/9",
        "bytes 0-4/9, 5-6/9",
        "items 0-4/9",
        "bytes 0 - 4/9",
        "bytes 0-4/9\n0",
        "bytes ٣-٤/٩",
        "bytes 0-1/" + "9" * 19,
    ],
)
def test_other_headers_are_refused(header: str | None) -> None:
    with pytest.raises(BadContentRange, match=r"(?i)content-range"):
        ContentRange.parse(header)
