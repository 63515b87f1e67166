"""Watching without a terminal: new lines for news, not for countdowns."""

from __future__ import annotations

import pytest

from farm_client.cli import watch
from farm_client.cli.output import Output
from farm_client.cli.watch import REMINDER_SECONDS, ProgressLines
from farm_client.sdk.watching.scene import Scene
from protocol.rest import TaskDetail
from tests.farm_client.cli.fake_farm import make_spec, make_task


@pytest.fixture
def printed(monkeypatch, capsys):
    """Show scenes one after the other, each so many seconds after the last, and return the lines of each."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, lines = Clock(), ProgressLines()
    monkeypatch.setattr(watch, "time", clock)

    def show(seconds=1.0, absent=None, **task) -> list[str]:
        clock.now += seconds
        detail = TaskDetail(task=make_task(state="pending", **task), spec=make_spec(), rounds=())
        lines.show(Scene(detail, (), (), (), (), absent=absent), Output(as_json=False))
        captured = capsys.readouterr()
        return (captured.out + captured.err).splitlines()

    return show


def test_a_countdown_is_one_line(printed):
    assert len(printed(why="laptop failed; again in 1 min 03 s")) == 1
    for why in ("again in 59 s", "again in 9.5 s", "again in 8 s", "again in 1 s"):
        assert printed(why=f"laptop failed; {why}") == []
    assert len(printed(why="waits for 1 more client")) == 1


def test_a_reason_that_stays_is_said_again_after_a_while(printed):
    assert len(printed(why="waits for 2 more clients")) == 1
    assert printed(REMINDER_SECONDS - 1, why="waits for 1 more clients") == []
    assert len(printed(2, why="waits for 1 more clients")) == 1
    assert printed(why="waits for 1 more clients") == []


def test_a_farm_that_stays_away_is_said_once(printed):
    assert len(printed(absent="no farm answers")) == 1
    assert printed(absent="no farm answers") == []
    assert len(printed()) == 1
