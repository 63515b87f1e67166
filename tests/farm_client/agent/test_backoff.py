from __future__ import annotations

import random

import pytest

from farm_client.agent.backoff import RECONNECT, TRANSFER, RetryPolicy


def test_waits_are_drawn_from_a_bound_that_grows_up_to_the_longest():
    policy = RetryPolicy(first_seconds=1.0, longest_seconds=10.0, growth=3.0)
    longest = [max(policy.delay_seconds(failures) for _ in range(300)) for failures in (1, 2, 3, 4)]
    for drawn, bound in zip(longest, (1, 3, 9, 10), strict=True):
        assert 0.8 * bound < drawn <= bound


@pytest.mark.parametrize("policy", [RECONNECT, TRANSFER])
def test_no_number_of_failures_is_too_many(policy):
    assert 0 <= policy.delay_seconds(1_000_000) <= policy.longest_seconds


def test_a_client_is_back_soon_after_a_server_that_was_away_for_seconds():
    """Work must go on within five seconds of a server's start, of which the client's wait may be a part."""
    random.seed(4)
    for _ in range(200):
        away, failures = 0.0, 0
        while away < 5.0:
            failures += 1
            away += (wait := RECONNECT.delay_seconds(failures))
        assert wait < 2.5


def test_only_a_limit_ends_the_tries():
    assert RECONNECT.allows(10**6)
    assert TRANSFER.allows(TRANSFER.tries - 1)
    assert not TRANSFER.allows(TRANSFER.tries)
