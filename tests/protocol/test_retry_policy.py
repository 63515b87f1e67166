"""The one retry policy: waits grow to a bound and no further, whoever draws them, however often it failed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.retry import MOST_GROWTHS, RetryPolicy, about, later_than

_policies = st.builds(
    RetryPolicy,
    first_seconds=st.floats(0.001, 10),
    longest_seconds=st.floats(10, 1000),
    tries=st.none() | st.integers(1, 20),
    growth=st.floats(1.0, 4.0),
)
_failures = st.integers(0, 10**9)
_draws = st.floats(0, 1, exclude_max=True)


@given(policy=_policies, failures=_failures, draw=_draws)
def test_a_wait_lies_between_nothing_and_its_bound(policy: RetryPolicy, failures: int, draw: float) -> None:
    bound = policy.bound_seconds(failures)
    assert 0 < bound <= policy.longest_seconds
    assert 0 <= policy.delay_seconds(failures, draw) <= bound
    assert math.isfinite(bound)


@given(policy=_policies, failures=_failures)
def test_bounds_never_fall_and_begin_with_the_first(policy: RetryPolicy, failures: int) -> None:
    assert policy.bound_seconds(failures + 1) >= policy.bound_seconds(failures)
    assert policy.bound_seconds(0) == policy.bound_seconds(1) == policy.first_seconds


@given(policy=_policies, failures=st.integers(1, MOST_GROWTHS))
def test_each_failure_multiplies_the_bound_until_the_longest(policy: RetryPolicy, failures: int) -> None:
    expected = min(policy.first_seconds * policy.growth ** (failures - 1), policy.longest_seconds)
    assert math.isclose(policy.bound_seconds(failures), expected)


@pytest.mark.parametrize(("tries", "failures", "allowed"), [(1, 0, True), (1, 1, False), (3, 2, True), (3, 3, False)])
def test_tries_count_the_first_one(tries: int, failures: int, allowed: bool) -> None:
    assert RetryPolicy(1, 10, tries=tries).allows(failures) is allowed


@given(_failures)
def test_without_a_number_of_tries_another_is_always_due(failures: int) -> None:
    assert RetryPolicy(1, 10).allows(failures)


@given(policy=_policies, failures=_failures, first=_draws, second=_draws)
def test_who_draws_more_waits_longer(policy: RetryPolicy, failures: int, first: float, second: float) -> None:
    waits = [policy.delay_seconds(failures, draw) for draw in sorted((first, second))]
    assert waits == sorted(waits)


@given(seconds=st.floats(0, 1e6), draw=_draws)
def test_an_asked_time_is_spread_to_both_sides_or_only_behind_it(seconds: float, draw: float) -> None:
    assert 0.75 * seconds <= about(seconds, draw) <= 1.25 * seconds
    assert seconds <= later_than(seconds, draw) <= 1.25 * seconds


def test_the_middle_draw_is_the_time_itself() -> None:
    assert about(8.0, 0.5) == 8.0
    assert later_than(8.0, 0.0) == 8.0


def test_after_an_outage_the_next_wait_is_a_small_part_of_it() -> None:
    """The docstring's claim: what is added by the growth of 1.1 is a fifth of what was waited so far."""
    policy = RetryPolicy(0.5, math.inf, growth=1.1)
    waited = 0.0
    for failures in range(1, 100):
        waited += policy.bound_seconds(failures) / 2  # the mean of the draws
        if failures > 50:
            assert policy.bound_seconds(failures + 1) <= 2 * (1.1 - 1) * waited * 1.15
