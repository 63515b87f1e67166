"""How numbers and live pictures look."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from farm_client.sdk.watching.formatting import (
    format_age,
    format_metrics,
    format_rate,
    format_seconds,
    format_value,
    sparkline,
)
from farm_client.sdk.watching.live_picture import draw_scene
from farm_client.sdk.watching.scene import Scene
from protocol.rest import EventView, TaskDetail
from protocol.wording import sized
from tests.farm_client.cli.fake_farm import make_client, make_spec, make_task


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")]
)
def test_sizes(size, text):
    assert sized(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (187, "3 min 07 s"), (3600, "1 h 00 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text


def test_ages_and_values():
    assert format_age(None) == "-"
    assert format_age(90.0, now=100.0) == "10.0 s ago"
    assert format_age(110.0, now=100.0) == "0.0 s ago"
    assert format_value(None) == "-"
    assert format_value(0.123456) == "0.1235"
    assert format_rate(0) == "-"
    assert format_rate(12.34) == "12.3 samples/s"
    assert format_metrics({"b": 2.0, "a": 1.0}) == "a 1  b 2"


def test_sparklines():
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 1.0], 5) == "▁▁"
    assert sparkline([0.0, math.nan, 7.0, math.inf], 5) == "▁█"
    assert len(sparkline([float(i) for i in range(100)], 5)) == 5


def picture(scene: Scene, columns: int = 110) -> str:
    console = Console(file=io.StringIO(), width=columns, force_terminal=False)
    console.print(draw_scene(scene, now=1_700_000_011.0))
    return console.file.getvalue()


def make_scene(**changes: object) -> Scene:
    events = tuple(
        EventView(seq=n, at=0, task_id="abcd2345", kind="round_committed", message=f"round {n} committed")
        for n in range(10)
    )
    detail = TaskDetail(task=changes.pop("task", make_task()), spec=make_spec(), rounds=())
    values = {"clients": (make_client(),), "fresh": (), "recent": events, "losses": (2.0, 1.0, 0.4), **changes}
    return Scene(detail, **values)


def test_the_live_picture_says_it_all():
    text = picture(make_scene())
    for part in ("digits", "running", "3 of 20", "0.4123", "accuracy 0.9312", "1,234 samples/s", "laptop", "training"):
        assert part in text
    assert "10.0 s, about 56.7 s to go" in text
    assert "round 9 committed" in text
    assert "round 3 committed" not in text


def test_the_live_picture_of_a_task_that_waits():
    waiting = make_task(
        state="pending", why="waiting for 1 more client", round=0, loss=None, metrics={}, started_at=None
    )
    text = picture(make_scene(task=waiting, clients=(), losses=(), recent=()))
    assert "waiting for 1 more client" in text
    assert "no client is online" in text
    assert "not evaluated yet" in text


def test_an_absent_farm_is_said():
    assert "no farm answers" in picture(make_scene(absent="no farm answers at http://x"))


def test_many_clients_are_cut_and_counted():
    text = picture(make_scene(clients=tuple(make_client(f"c{n}") for n in range(25))))
    assert "and 15 more" in text


def test_a_narrow_terminal_loses_no_line():
    assert all(len(line) <= 60 for line in picture(make_scene(), columns=60).splitlines())
