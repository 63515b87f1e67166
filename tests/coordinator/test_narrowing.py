"""A part that ended executors is cut in halves of whole batches, and one batch item by item; never is an item lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.narrowing import Suspects, in_whole_batches, is_at_fault, is_hopeless, is_one_batch, pieces_of


def covers(pieces: list[tuple[int, int]], start: int, stop: int) -> bool:
    ends = [start, *(end for _, end in pieces)]
    return [begin for begin, _ in pieces] == ends[:-1] and ends[-1] == stop and all(a < b for a, b in pieces)


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 9))
def test_pieces_are_the_stretch_and_keep_batches_whole(first: int, items: int, batch: int) -> None:
    start, stop = first * batch, first * batch + items
    pieces = pieces_of(start, stop, batch)
    assert covers(pieces, start, stop)
    if is_one_batch(start, stop, batch):
        assert len(pieces) == items
    else:
        assert len(pieces) == 2
        assert pieces[0][1] % batch == 0
        batches = [-(-(end - begin) // batch) for begin, end in pieces]
        assert abs(batches[0] - batches[1]) <= 1


@given(st.integers(2, 10_000), st.data())
def test_an_item_is_found_in_as_many_steps_as_halvings_take(items: int, data: st.DataObject) -> None:
    item = data.draw(st.integers(0, items - 1))
    suspects, stretch, steps = Suspects(), (0, items), 0
    while stretch[1] - stretch[0] > 1:
        pieces = suspects.narrow(*stretch, 1)
        stretch = next(piece for piece in pieces if piece[0] <= item < piece[1])
        steps += 1
    assert stretch == (item, item + 1)
    assert steps <= items.bit_length()
    assert suspects.stretch_of(*stretch) == stretch


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 9), st.integers(0, 40))
def test_of_a_batch_that_is_partly_done_each_item_is_left_alone(start: int, items: int, batch: int, more: int) -> None:
    stop = start + items
    end = stop + more
    pieces = list(in_whole_batches(start, stop, batch, end))
    assert covers(pieces, start, stop)
    for begin, until in pieces:
        is_whole = begin % batch == 0 and (until % batch == 0 or until == end)
        assert is_whole or until - begin == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=5), st.integers(0, 30), st.integers(1, 30))
def test_what_is_suspected_is_kept_apart(suspected: list[tuple[int, int]], start: int, items: int) -> None:
    suspects = Suspects(deaths={(first, first + some): {} for first, some in suspected})
    pieces = list(suspects.apart([(start, start + items)]))
    assert covers(pieces, start, start + items)
    for first, some in suspected:
        for begin, until in pieces:
            assert not (begin < first < until)
            assert not (begin < first + some < until)


def test_what_is_done_is_suspected_no_more() -> None:
    suspects = Suspects()
    suspects.narrow(0, 8, 1)
    suspects.clear(0, 4)
    assert suspects.stretch_of(1, 2) is None
    assert suspects.stretch_of(4, 6) == (4, 8)
    assert suspects.stretch_of(6, 9) is None


@pytest.mark.parametrize(
    ("deaths", "able", "verdict"),
    [
        ({}, {"ada"}, False),
        ({"ada": 1}, {"ada"}, False),
        ({"ada": 2}, {"ada"}, True),
        ({"ada": 2}, set(), True),
        ({"ada": 9}, {"ada", "bob"}, False),
        ({"ada": 1, "bob": 1}, {"ada", "bob", "cid"}, True),
        ({"ada": 1, "bob": 0}, {"ada"}, False),
    ],
)
def test_two_clients_or_the_only_one_twice(deaths: dict[str, int], able: set[str], verdict: bool) -> None:
    assert is_at_fault(deaths, able) is verdict


@pytest.mark.parametrize(("failed", "done", "verdict"), [(3, 0, False), (4, 0, True), (4, 4, False), (9, 8, True)])
def test_a_map_of_which_most_items_end_executors_is_hopeless(failed: int, done: int, verdict: bool) -> None:
    assert is_hopeless(failed, done) is verdict
