from __future__ import annotations

import random
from itertools import pairwise

import pytest

from farm_client.agent.connection.reconnect_policy import COSTLY, DISPLACED, RECONNECT, STEADY_SECONDS, Reconnecting
from farm_client.transfer.carrier import RETRY
from protocol.retry import RetryPolicy, about


def test_waits_are_drawn_from_a_bound_that_grows_up_to_the_longest():
    policy = RetryPolicy(first_seconds=1.0, longest_seconds=10.0, growth=3.0)
    longest = [max(policy.delay_seconds(failures, random.random()) for _ in range(300)) for failures in (1, 2, 3, 4)]
    for drawn, bound in zip(longest, (1, 3, 9, 10), strict=True):
        assert 0.8 * bound < drawn <= bound


@pytest.mark.parametrize("policy", [RECONNECT, RETRY])
def test_no_number_of_failures_is_too_many(policy):
    assert 0 <= policy.delay_seconds(1_000_000, 0.999) <= policy.longest_seconds


def test_a_client_is_back_soon_after_a_server_that_was_away_for_seconds():
    """Work must go on within five seconds of a server's start, of which the client's wait may be a part."""
    random.seed(4)
    for _ in range(200):
        away, failures = 0.0, 0
        while away < 5.0:
            failures += 1
            away += (wait := RECONNECT.delay_seconds(failures, random.random()))
        assert wait < 2.5


def test_only_a_limit_ends_the_tries():
    assert RECONNECT.allows(10**6)
    assert RETRY.allows(RETRY.tries - 1)
    assert not RETRY.allows(RETRY.tries)


def test_those_who_were_told_to_wait_alike_do_not_come_together():
    waits = [about(4.0, random.random()) for _ in range(300)]
    assert 3.0 <= min(waits) < 3.2
    assert 4.8 < max(waits) <= 5.0


def longest(reconnecting):
    """Return about the longest wait that may be drawn now."""
    return max(reconnecting.delay_seconds() for _ in range(200))


def test_a_welcome_ends_an_outage_however_long_it_was():
    reconnecting = Reconnecting()
    for _ in range(100):
        reconnecting.failed()
    assert longest(reconnecting) > 20
    reconnecting.ended(STEADY_SECONDS)
    assert longest(reconnecting) <= RECONNECT.first_seconds


def test_a_restart_soon_after_a_welcome_is_not_paid_for_with_the_outage_before():
    reconnecting = Reconnecting()
    for _ in range(100):
        reconnecting.failed()
    reconnecting.ended(0.1)
    assert longest(reconnecting) <= COSTLY.first_seconds


def test_a_farm_that_welcomes_and_drops_at_once_is_tried_less_and_less():
    reconnecting, waits = Reconnecting(), []
    for _ in range(8):
        reconnecting.ended(0.0)
        waits.append(longest(reconnecting))
    assert all(later > 1.5 * earlier for earlier, later in pairwise(waits[:6]))
    assert waits[-1] > 0.8 * COSTLY.longest_seconds


def test_an_outage_between_brief_connections_does_not_excuse_them():
    reconnecting = Reconnecting()
    for _ in range(8):
        reconnecting.ended(0.0)
        reconnecting.failed()
    assert longest(reconnecting) > 0.8 * COSTLY.longest_seconds
    reconnecting.ended(STEADY_SECONDS)
    assert longest(reconnecting) <= RECONNECT.first_seconds


def test_who_shares_an_identity_returns_more_and_more_seldom_and_never_at_once():
    reconnecting, waits = Reconnecting(), []
    for _ in range(12):
        reconnecting.displaced()
        reconnecting.ended(60.0)  # until the other one took its turn
        drawn = [reconnecting.delay_seconds() for _ in range(200)]
        assert min(drawn) >= DISPLACED.bound_seconds(len(waits) + 1) / 2
        waits.append(max(drawn))
    assert waits[-1] > DISPLACED.longest_seconds / 2
    reconnecting.ended(DISPLACED.longest_seconds)
    assert longest(reconnecting) <= RECONNECT.first_seconds


def test_a_greeting_that_took_too_long_is_tried_less_and_less_until_it_succeeds():
    reconnecting, waits = Reconnecting(), []
    for _ in range(6):
        reconnecting.failed(was_slow=True)
        waits.append(longest(reconnecting))
    assert all(later > 1.5 * earlier for earlier, later in pairwise(waits))
    reconnecting.ended(STEADY_SECONDS)
    assert longest(reconnecting) <= RECONNECT.first_seconds


def test_what_a_farm_asks_for_is_waited_once_and_not_by_all_alike():
    reconnecting = Reconnecting()
    reconnecting.failed(retry_after_seconds=8.0)
    drawn = [reconnecting.delay_seconds() for _ in range(300)]
    assert 8.0 <= min(drawn) < 8.3
    assert 9.7 < max(drawn) <= 10.5
    reconnecting.failed()
    assert longest(reconnecting) < 1.0
