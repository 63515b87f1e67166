"""Several parts may have a reason to pause; the farm hears of one, and of the end when there is none any more."""

from types import SimpleNamespace

import pytest

from farm_client.agent.work.pauses import Pauses
from protocol.messages import Pause, Resume


@pytest.fixture
def posted():
    return []


@pytest.fixture
def pauses(posted):
    return Pauses(SimpleNamespace(post=posted.append))


def test_the_first_reason_is_told_and_the_end_of_the_last(pauses, posted):
    pauses.say("disk", "full")
    pauses.say("owner", "gaming")
    assert posted == [Pause(reason="full")]
    pauses.say("disk", None)
    assert posted[1:] == [Pause(reason="gaming")]
    pauses.say("owner", "gaming")
    pauses.say("owner", None)
    assert posted[2:] == [Resume()]
    pauses.say("owner", None)
    assert posted[3:] == []


def test_a_new_connection_hears_of_it_and_without_a_reason_of_nothing(pauses, posted):
    pauses.say_again()
    assert posted == []
    pauses.say("owner", "gaming")
    pauses.say_again()
    assert posted == [Pause(reason="gaming")] * 2


def test_what_was_refused_is_asked_for_again_but_in_a_pause(pauses, posted):
    pauses.ask_again()
    assert posted == [Resume()]
    pauses.say("owner", "gaming")
    pauses.ask_again()  # its end will do the same
    assert posted[1:] == [Pause(reason="gaming")]


def test_a_long_reason_is_cut_to_what_a_message_carries(pauses, posted):
    pauses.say("owner", "x" * 100_000)
    assert 0 < len(posted[0].reason) < 10_000
