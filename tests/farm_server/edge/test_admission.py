from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from farm_server.edge.admission import (
    GREETING_SECONDS,
    LEAST_BURST,
    LEAST_PER_SECOND,
    LONGEST_APPOINTMENT_SECONDS,
    MOST_PER_SECOND,
    SHARE_OF_LOOP,
    Admission,
)


def learned(cost_seconds: float) -> Admission:
    admission = Admission()
    for _ in range(500):
        admission.cost(cost_seconds)
    return admission


def test_a_few_come_in_at_once():
    admission = Admission()
    assert [admission.ask(100.0) for _ in range(int(LEAST_BURST))] == [None] * int(LEAST_BURST)


def test_joins_take_their_share_of_the_loop_and_no_more():
    admission = learned(0.004)
    seconds = 20
    let_in = sum(admission.ask(step / 1000) is None for step in range(seconds * 1000))
    share = (let_in - LEAST_BURST) * 0.004 / seconds
    assert 0.9 * SHARE_OF_LOOP <= share <= 1.01 * SHARE_OF_LOOP


def test_a_late_loop_lets_fewer_in_and_recovers():
    admission = learned(0.002)
    usual = admission.per_second
    admission.look(2.0)
    assert admission.per_second <= usual / 9
    for _ in range(100):
        admission.look(0.0)
    assert admission.per_second == usual


def test_greetings_under_way_are_bounded():
    admission = learned(0.01)
    let_in = 0
    for step in range(100_000):
        if admission.ask(step / 100) is None:
            admission.begins()
            let_in += 1
    assert let_in == math.ceil(admission.per_second * GREETING_SECONDS)
    admission.ends()
    assert admission.ask(2000.0) is None


def test_a_crowd_is_back_in_the_time_that_its_greetings_take():
    """5,000 dial at once, and again when they are told to."""
    admission = learned(0.002)
    due = [(0.0, number) for number in range(5000)]
    dials = 0
    finished_at = 0.0
    while due:
        due.sort()
        now, number = due.pop(0)
        dials += 1
        if (seconds := admission.ask(now)) is None:
            finished_at = now
        else:
            due.append((now + max(seconds, 1.0), number))
    assert finished_at < 30
    assert dials < 3 * 5000


@settings(max_examples=50)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("cost"), st.floats(0, 1e6)),
            st.tuples(st.just("look"), st.floats(0, 1e6)),
            st.tuples(st.just("ask"), st.floats(0, 100)),
        ),
        max_size=60,
    )
)
def test_whatever_it_learns_somebody_may_come_and_nobody_waits_for_ever(steps):
    admission, now = Admission(), 0.0
    for what, value in steps:
        if what == "ask":
            now += value
            seconds = admission.ask(now)
            assert seconds is None or 0 < seconds <= LONGEST_APPOINTMENT_SECONDS
        else:
            (admission.cost if what == "cost" else admission.look)(value)
        assert LEAST_PER_SECOND <= admission.per_second <= MOST_PER_SECOND
    assert admission.ask(now + 1 / LEAST_PER_SECOND + 1) is None
