from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.limits import INLINE_BYTES
from protocol.link_capacity import LEAST_BYTES, MOMENT_SECONDS, LinkCapacity


def test_a_quick_link_carries_as_much_as_was_agreed() -> None:
    limit = LinkCapacity()
    limit.written(INLINE_BYTES, MOMENT_SECONDS, now=0.0)
    assert limit.at(1.0, INLINE_BYTES) == INLINE_BYTES


def test_a_slow_link_carries_what_it_takes_in_a_moment() -> None:
    limit = LinkCapacity()
    limit.written(1_000_000, 2.5, now=0.0)
    assert limit.at(1.0, INLINE_BYTES) == 100_000


def test_small_frames_that_wait_say_nothing() -> None:
    limit = LinkCapacity()
    limit.written(100, 60.0, now=0.0)
    assert limit.at(1.0, INLINE_BYTES) == INLINE_BYTES


def test_it_rises_step_by_step() -> None:
    limit = LinkCapacity()
    limit.written(1_000_000, 2.5, now=0.0)
    assert [limit.at(now, INLINE_BYTES) for now in (59.0, 61.0, 62.0, 122.0, 200.0)] == [
        100_000,
        400_000,
        400_000,
        INLINE_BYTES,
        INLINE_BYTES,
    ]


@given(st.integers(0, INLINE_BYTES), st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 1000)), max_size=10))
def test_it_stays_within_its_bounds(most: int, frames: list[tuple[int, float]]) -> None:
    limit = LinkCapacity()
    for now, (size, seconds) in enumerate(frames):
        limit.written(size, seconds, float(now))
        assert min(most, LEAST_BYTES) <= limit.at(float(now), most) <= most
