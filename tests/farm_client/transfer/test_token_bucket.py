"""The law of a rate limit, on a clock that a test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.transfer.token_bucket import TokenBucket

rates = st.floats(1, 1e9)
amounts = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 10)), max_size=30)


@given(rates, amounts)
def test_over_any_time_no_more_passes_than_the_rate_and_a_burst(rate: float, takes: list[tuple[float, float]]) -> None:
    """Takes as shares of a burst, each after a pause."""
    bucket, now, passed = TokenBucket.full(rate, 50.0), 50.0, [(50.0, 0.0)]
    for share, pause in takes:
        now += pause
        amount = share * bucket.burst_bytes
        now += bucket.wait_seconds(amount, now)
        bucket.take(amount, now)
        passed.append((now, passed[-1][1] + amount))
    for began, before in passed:
        for ended, after in passed:
            assert after - before <= (rate * max(0.0, ended - began) + bucket.burst_bytes) * (1 + 1e-6)


@given(rates, st.floats(0, 1e6), st.floats(0, 1))
def test_nobody_waits_longer_than_the_debt_takes(rate: float, debt: float, share: float) -> None:
    bucket = TokenBucket.full(rate, 0.0)
    bucket.take(debt, 0.0)
    amount = share * bucket.burst_bytes
    wait = bucket.wait_seconds(amount, 0.0)
    assert wait <= debt / rate + 1e-9
    assert bucket.wait_seconds(amount, wait * (1 + 1e-9) + 1e-9) == pytest.approx(0.0, abs=1e-6)


def test_what_is_larger_than_a_burst_waits_for_a_full_bucket() -> None:
    bucket = TokenBucket.full(100.0, 0.0)
    assert bucket.burst_bytes == 10
    assert bucket.wait_seconds(1000, 0.0) == 0
    bucket.take(1000, 0.0)
    assert bucket.wait_seconds(5, 0.0) == pytest.approx(9.95)


@given(rates, rates, st.floats(-1e6, 1e6))
def test_a_change_keeps_a_debt_and_saves_nothing_up(old: float, new: float, level: float) -> None:
    bucket = TokenBucket.full(old, 0.0)
    bucket.level = min(level, bucket.burst_bytes)
    before = bucket.level
    bucket.change(new, 0.0)
    assert bucket.level == pytest.approx(min(before, max(1.0, new / 10)))


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket.full(100.0, 50.0)
    bucket.take(10, 50.0)
    assert bucket.wait_seconds(1, 40.0) == pytest.approx(0.01)
