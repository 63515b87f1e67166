"""What a watch gathers: nothing is seen twice, and a farm that is away for a moment is waited for."""

from __future__ import annotations

import httpx
import pytest

from farm_client.sdk.api import FarmApi
from farm_client.sdk.config import parse_address
from farm_client.sdk.errors import FarmUnreachable
from farm_client.sdk.feeds import follow, wait_until_over
from farm_client.sdk.retrying import RetryWhileAway
from farm_client.sdk.watching import scene as scene_module
from farm_client.sdk.watching.scene import scenes
from protocol.rest import EventView, LogView
from tests.farm_client.cli.fake_farm import ADDRESS, make_task


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that only sleeping moves."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(scene_module, "time", clock)
    return clock


@pytest.fixture
def told():
    return []


@pytest.fixture
def api(fake, clock, told):
    network = httpx.MockTransport(lambda request: fake.answer(request))  # noqa: PLW0108  tests replace `answer`
    with FarmApi(parse_address(ADDRESS, "test"), network, retry=RetryWhileAway(60, told.append, clock)) as api:
        yield api


def make_event(seq):
    return EventView(seq=seq, at=0, task_id="abcd2345", kind="round_committed", message=f"round {seq}")


def test_each_event_is_fresh_once_and_recent_from_then_on(api, fake):
    fake.events = [make_event(1), make_event(2)]
    watched = scenes(api, "abcd2345")
    first = next(watched)
    fake.events.append(make_event(3))
    fake.tasks = [make_task(state="completed")]
    (last,) = watched
    assert [event.seq for event in first.fresh] == [1, 2]
    assert [event.seq for event in last.fresh] == [3]
    assert [event.seq for event in last.recent] == [1, 2, 3]


def test_looks_are_not_taken_faster_than_people_read(api, fake, clock):
    watched = scenes(api, "abcd2345")
    for _ in range(5):
        next(watched)
    assert clock.now >= 4 * scene_module.SHORTEST_STEP_SECONDS


def test_a_farm_that_is_away_for_a_moment_is_waited_for(api, fake):
    watched = scenes(api, "abcd2345")
    next(watched)

    def refuse():
        raise httpx.ConnectError("refused")

    fake.overrides["GET", "/v1/tasks/abcd2345"] = refuse
    away = next(watched)
    assert "no farm answers" in away.absent
    assert away.detail.task.round == 3
    fake.overrides.clear()
    fake.tasks = [make_task(state="completed")]
    assert next(watched).detail.task.state == "completed"


def test_the_tries_end(api, fake):
    watched = scenes(api, "abcd2345")
    next(watched)

    def refuse():
        raise httpx.ConnectError("refused")

    fake.overrides["GET", "/v1/tasks/abcd2345"] = refuse
    with pytest.raises(FarmUnreachable):
        list(watched)


def test_following_a_feed_reads_what_was_written_until_the_end(api, fake):
    def make_log(seq):
        return LogView(seq=seq, at=0, client_id="a", client_name="a", round=0, stream="stdout", text=str(seq))

    fake.logs = [make_log(1)]
    lines = follow(api, api.logs, "abcd2345")
    assert next(lines).seq == 1
    fake.logs += [make_log(2), make_log(3)]
    fake.tasks = [make_task(state="cancelled")]
    assert [line.seq for line in lines] == [2, 3]


REFUSED = httpx.ConnectError("refused")


def cut(fake, clock, *, seconds, by=REFUSED):
    """Let the farm be away, in one of the ways in which it can be, until the clock has moved on by ``seconds``."""
    back_at = clock.now + seconds
    whole = fake.answer

    def answer(request):
        if clock.now >= back_at:
            return whole(request)
        if isinstance(by, Exception):
            raise by
        return by

    fake.answer = answer


@pytest.mark.parametrize(
    "by",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.Response(404, text="no backend"),
        httpx.Response(503, json={"code": "unavailable", "message": "the farm is stopping"}),
    ],
    ids=repr,
)
def test_following_loses_no_line_over_an_outage(api, fake, clock, told, by):
    def make_log(seq):
        return LogView(seq=seq, at=0, client_id="a", client_name="a", round=0, stream="stdout", text=str(seq))

    fake.logs = [make_log(1), make_log(2)]
    lines = follow(api, api.logs, "abcd2345")
    assert next(lines).seq == 1
    cut(fake, clock, seconds=25, by=by)
    fake.logs += [make_log(3)]
    fake.tasks = [make_task(state="completed")]
    assert [line.seq for line in lines] == [2, 3]
    assert len(told) == 2
    assert "waiting for it, 60 s at most" in told[0]
    assert told[1] == "the farm answers again"


def test_waiting_bears_an_outage_and_then_no_longer(api, fake, clock):
    api.task("abcd2345")
    cut(fake, clock, seconds=25)
    fake.tasks = [make_task(state="completed")]
    assert wait_until_over(api, "abcd2345", 1e9).state == "completed"
    cut(fake, clock, seconds=61)
    began = clock.now
    with pytest.raises(FarmUnreachable):
        wait_until_over(api, "abcd2345", 1e9)
    assert clock.now - began == pytest.approx(60, abs=1)


def test_an_address_at_which_nobody_answers_is_told_at_once(api, fake, clock):
    cut(fake, clock, seconds=1)
    with pytest.raises(FarmUnreachable):
        wait_until_over(api, "abcd2345", 1e9)
    assert clock.now == 0


def test_a_command_that_only_waits_may_begin_while_the_farm_is_away(fake, clock):
    network = httpx.MockTransport(lambda request: fake.answer(request))  # noqa: PLW0108
    cut(fake, clock, seconds=8)
    retry = RetryWhileAway(60, clock=clock, from_start=True)
    with FarmApi(parse_address(ADDRESS, "test"), network, retry=retry) as api:
        assert api.task("abcd2345").task.task_id == "abcd2345"


def test_what_changes_something_is_asked_once(api, fake, clock):
    api.task("abcd2345")
    cut(fake, clock, seconds=1)
    with pytest.raises(FarmUnreachable):
        api.act("abcd2345", "pause")
