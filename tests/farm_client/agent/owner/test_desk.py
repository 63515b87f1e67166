"""The verbs of the control socket: what each does to the policy, and what it refuses."""

import pytest

from farm_client.agent.errors import BadControlRequest, BadSettings
from farm_client.agent.owner.desk import OwnerDesk
from farm_client.agent.owner.keeper import PolicyKeeper
from farm_client.agent.owner.reasons import Observations
from farm_client.agent.reporting.console import Event

EVENTS = [Event(number=number, at=0.0, text=f"line {number}") for number in (1, 2, 3)]


@pytest.fixture
def keeper(tmp_path):
    return PolicyKeeper(tmp_path / "policy.json", lambda _policy: Observations(), lambda: 1000.0)


@pytest.fixture
def ask(keeper):
    finished = []
    desk = OwnerDesk(
        keeper, lambda: {"doing": "resting"}, lambda n: [e for e in EVENTS if e.number > n], lambda: finished.append(1)
    )
    verbs = desk.verbs()

    def ask(do, **request):
        return verbs[do]({"do": do, **request})

    ask.finished = finished
    return ask


def test_each_verb_answers_with_what_is_in_force(ask, keeper):
    assert ask("status") == {"doing": "resting"}
    assert ask("set", changes={"only_idle": True})["only_idle"] is True
    assert ask("pause", seconds=60)["paused_until"] == 1060.0
    assert ask("policy")["paused"] is True
    assert ask("resume")["paused"] is False
    assert ask("pause")["paused_until"] is None
    assert keeper.policy.paused
    assert ask("finish") == {"finishing": True}
    assert ask.finished == [1]


def test_logs_are_those_after_a_number(ask):
    assert [event["text"] for event in ask("logs")["events"]] == ["line 1", "line 2", "line 3"]
    assert [event["number"] for event in ask("logs", after=2)["events"]] == [3]


@pytest.mark.parametrize("seconds", [0, -1, True, "2h", 1e12, [], float("inf")])
def test_a_pause_of_no_length_is_refused(ask, keeper, seconds):
    with pytest.raises(BadControlRequest, match="`pause` takes"):
        ask("pause", seconds=seconds)
    assert not keeper.policy.paused


@pytest.mark.parametrize("after", ["1", None, True, [], 1e300])
def test_lines_after_no_number_are_refused(ask, after):
    with pytest.raises(BadControlRequest, match="`logs` takes"):
        ask("logs", after=after)


@pytest.mark.parametrize("changes", [None, [], "only_idle", 1])
def test_changes_are_an_object(ask, changes):
    with pytest.raises(BadControlRequest, match="`set` needs"):
        ask("set", changes=changes)


@pytest.mark.parametrize("changes", [{"nonsense": 1}, {"hours": 5}, {"idle_seconds": float("nan")}])
def test_wrong_changes_name_the_field(ask, changes):
    with pytest.raises(BadSettings, match=next(iter(changes))):
        ask("set", changes=changes)
