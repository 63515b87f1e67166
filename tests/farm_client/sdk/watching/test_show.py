"""Watching without a terminal: new lines for news, not for countdowns."""

from __future__ import annotations

import io

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from rich.console import Console

from farm_client.sdk.watching import show as show_module
from farm_client.sdk.watching.scene import Scene
from farm_client.sdk.watching.show import REMINDER_SECONDS, NotebookPicture, ProgressLines, picture_html, showing
from protocol.rest import TaskDetail
from tests.farm_client.cli.fake_farm import make_spec, make_task


@pytest.fixture
def printed(monkeypatch):
    """Show scenes one after the other, each so many seconds after the last, and return the lines of each."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    written: list[str] = []
    clock, lines = Clock(), ProgressLines(written.append)
    monkeypatch.setattr(show_module, "time", clock)

    def show(seconds=1.0, absent=None, **task) -> list[str]:
        clock.now += seconds
        detail = TaskDetail(task=make_task(state="pending", **task), spec=make_spec(), rounds=())
        written.clear()
        lines.show(Scene(detail, (), (), (), (), absent=absent))
        return list(written)

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


def scene_of(**task):
    return Scene(TaskDetail(task=make_task(**task), spec=make_spec(), rounds=()), (), (), (), (0.9, 0.5))


def test_a_notebook_has_one_picture_that_changes():
    shell = InteractiveShell.instance()
    publisher, shell.display_pub = shell.display_pub, CapturingDisplayPublisher()
    try:
        picture = NotebookPicture()
        for number in (3, 4):
            picture.show(scene_of(round=number))
        first, second = shell.display_pub.outputs
    finally:
        shell.display_pub = publisher
        InteractiveShell.clear_instance()
    assert first["transient"] == second["transient"]
    assert (first["update"], second["update"]) == (False, True)
    assert "3 of 20" in first["data"]["text/html"]
    assert "4 of 20" in second["data"]["text/html"]


def test_what_strangers_write_is_no_markup_in_a_notebook():
    html = picture_html(scene_of(name="<script>alert(1)</script>", state="failed", error="<img src=x>"))
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_a_terminal_gets_a_picture_and_a_file_gets_lines():
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with showing(terminal) as show:
        show(scene_of(round=5))
    assert "5 of 20" in terminal.file.getvalue()
    assert "\x1b[" in terminal.file.getvalue()
    lines = Console(file=io.StringIO(), width=200)
    with showing(lines) as show:
        show(scene_of(round=5))
        show(Scene(scene_of(round=5).detail, (), (), (), (), absent="no farm answers"))
    assert lines.file.getvalue().splitlines()[1] == "no farm answers"
