"""What shows a status as it changes, and leaves the terminal as it was."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from farm_client.agent.reporting import screens
from farm_client.agent.reporting.console import Console, Event
from farm_client.agent.reporting.screens import (
    PanelScreen,
    ScreenThread,
    StatusEnvelopes,
    StatusView,
    chosen_view,
    own_stream,
    shown,
)
from farm_client.agent.reporting.status import Status, StatusBoard

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


_SHOWS = """
import sys
from farm_client.agent.reporting.screens import ScreenThread, StatusView, given_back_while_stopped, screen_for
from farm_client.agent.reporting.status import Status
thread = ScreenThread(screen_for(StatusView.PANEL))
with given_back_while_stopped(thread):
    thread.offer(Status(doing="waiting"))
    sys.stdin.read()
"""


def read_until(descriptor: int, text: str) -> str:
    """Return what a terminal shows, up to a text; of what ended an error."""
    drawn = ""
    while text not in drawn:
        drawn += os.read(descriptor, 65536).decode()
    return drawn


class Terminal:
    """A pseudo-terminal; what was drawn on it can be read."""

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        self.stream: IO[str] = os.fdopen(theirs, "w", encoding="utf-8")

    def drawn(self) -> str:
        """Return what came since the last call, up to what is closed or still open."""
        os.set_blocking(self._ours, False)
        parts = []
        try:
            while part := os.read(self._ours, 65536):
                parts.append(part)
        except OSError:  # nothing more, or the other end is closed
            pass
        return b"".join(parts).decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def events(*texts: str, first: int = 1) -> tuple[Event, ...]:
    return tuple(Event(number=first + n, at=5.0, text=text) for n, text in enumerate(texts))


class TestChosenView:
    """A panel where one can be drawn, lines where not, JSON where it is asked for."""

    def test_a_terminal_gets_the_panel(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm")
        stream: Any = terminal.stream
        assert chosen_view(as_json=False, log_format="lines", stream=stream) is StatusView.PANEL
        assert chosen_view(as_json=True, log_format="lines", stream=stream) is StatusView.JSON
        assert chosen_view(as_json=False, log_format="json", stream=stream) is StatusView.LINES
        monkeypatch.setenv("TERM", "dumb")
        assert chosen_view(as_json=False, log_format="lines", stream=stream) is StatusView.LINES

    def test_a_file_gets_lines(self) -> None:
        assert chosen_view(as_json=False, log_format="lines", stream=io.StringIO()) is StatusView.LINES


class TestPanelScreen:
    """Drawn in its place; the cursor is there again at its end."""

    def test_it_draws_in_its_place_and_shows_the_cursor_again(self, terminal: Terminal) -> None:
        screen = PanelScreen(terminal.stream)
        screen.show(Status(doing="first"))
        screen.show(Status(doing="second"))
        screen.close()
        text = terminal.drawn()
        assert text.index("first") < text.index("\x1b[1A", text.index("first")) < text.index("second")
        assert text.rindex(SHOW) > text.rindex(HIDE)
        assert terminal.stream.closed

    def test_network_bars_are_full_at_the_most_that_was_seen(self, terminal: Terminal) -> None:
        screen = PanelScreen(terminal.stream)
        full, half = ({"speeds": {"sent_bytes": count}} for count in (1000.0, 500.0))
        screen.show(Status.model_validate(full))
        screen.show(Status.model_validate(half))
        screen.close()
        bars = [line for line in terminal.drawn().splitlines() if "up  " in line]
        assert [bar.count("━") > bar.count("─") for bar in bars[:1]] == [True]
        assert bars[1].count("━") == bars[1].count("─")


class TestStatusEnvelopes:
    """Each event once."""

    def test_a_program_gets_events_and_the_status_when_it_changes(self) -> None:
        written: list[str] = []
        lines = StatusEnvelopes(written.append)
        for at, doing, text in ((0.0, "x", "a"), (1.0, "x", "a"), (2.0, "y", "a"), (11.9, "y", "a"), (12.0, "y", "a")):
            lines.show(Status(updated_at=at, doing=doing, events=events(text)))
        lines.close()
        told = [json.loads(line) for line in written]
        assert [line["kind"] for line in told] == ["client_event", *["client_status"] * 3]
        assert [line["data"]["updated_at"] for line in told[1:]] == [0.0, 2.0, 12.0]
        assert told[0]["data"] == {"number": 1, "at": 5.0, "text": "a"}
        assert {line["schema"] for line in told} == {1}
        assert told[1]["data"]["running"] is True


class Slow:
    """A screen that a terminal holds until it is let go."""

    def __init__(self) -> None:
        self.held, self.go = threading.Event(), threading.Event()
        self.shown: list[str] = []
        self.closed = False

    def show(self, status: Status) -> None:
        self.held.set()
        assert self.go.wait(60)
        self.shown.append(status.doing)

    def close(self) -> None:
        self.closed = True


class TestScreenThread:
    """A terminal that takes nothing stops its thread alone."""

    def test_of_what_comes_while_it_is_held_the_newest_is_shown(self) -> None:
        screen = Slow()
        thread = ScreenThread(lambda: screen)
        thread.offer(Status(doing="first"))
        assert screen.held.wait(60)
        for doing in ("second", "third", "last"):
            thread.offer(Status(doing=doing))
        screen.go.set()
        thread.close()
        assert (screen.shown, screen.closed) == (["first", "last"], True)

    def test_one_that_stays_held_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(screens, "_CLOSING_SECONDS", 0.01)
        screen = Slow()
        thread = ScreenThread(lambda: screen)
        thread.offer(Status())
        assert screen.held.wait(60)
        thread.close()
        assert not screen.closed
        screen.go.set()

    def test_what_is_put_away_is_closed_and_comes_back_with_what_was_shown_last(self) -> None:
        made: list[Slow] = []

        def make() -> Slow:
            made.append(Slow())
            made[-1].go.set()
            return made[-1]

        thread = ScreenThread(make)
        thread.offer(Status(doing="first"))
        assert self._made(made, 1).held.wait(60)
        thread.put_away()
        assert made[0].closed
        thread.come_back()
        second = self._made(made, 2)
        assert second.held.wait(60)
        thread.put_away()
        thread.offer(Status(doing="never"))
        thread.close()
        assert [screen.shown for screen in made] == [["first"], ["first"]], "nothing is drawn while it is away"
        assert all(screen.closed for screen in made)

    @staticmethod
    def _made(made: list[Slow], count: int) -> Slow:
        while len(made) < count:
            threading.Event().wait(0.001)
        return made[count - 1]

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ValueError("closed")])
    def test_a_terminal_that_is_gone_costs_the_view_alone(self, error: Exception) -> None:
        class Gone(Slow):
            def show(self, status: Status) -> None:
                raise error

        screen = Gone()
        thread = ScreenThread(lambda: screen)
        thread.offer(Status())
        thread.close()
        assert screen.closed


@pytest.fixture
def board(tmp_path: Path) -> StatusBoard:
    return StatusBoard(tmp_path / "status.json")


@pytest.fixture
def on_terminal(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stream: Any = terminal.stream
    monkeypatch.setattr(screens, "own_stream", lambda _stream: own_stream(stream))
    return terminal


class TestShown:
    """For the length of a block, and to its end whatever ends it."""

    @pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError, KeyboardInterrupt])
    async def test_whatever_ends_it_the_cursor_is_back_and_the_last_status_stands(
        self, on_terminal: Terminal, board: StatusBoard, error: type[BaseException]
    ) -> None:
        said = io.StringIO()
        console = Console("lines", said)
        board.events = console.events
        with pytest.raises(error):  # noqa: PT012  the block is what is tested
            async with shown(StatusView.PANEL, board, console):
                console.tell("on the panel")
                console.trace("a mistake", KeyError("where"))
                board.show(doing="the last thing")
                raise error
        text = on_terminal.drawn()
        assert text.rindex(SHOW) > text.rindex(HIDE)
        assert "the last thing" in text
        assert "on the panel" in text
        assert "on the panel" not in said.getvalue()
        assert "KeyError: 'where'" in said.getvalue()
        console.tell("after it")
        assert said.getvalue().endswith("after it\n")

    async def test_it_is_drawn_again_though_nothing_happens(
        self, on_terminal: Terminal, board: StatusBoard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(screens, "_STEP_SECONDS", 0.001)
        looks = []
        board.work = lambda: looks.append(1) or ()  # type: ignore[func-returns-value]
        async with shown(StatusView.PANEL, board, Console("lines", io.StringIO())):
            async with asyncio.timeout(60):
                while len(looks) < 5:  # noqa: ASYNC110  it is told by nothing else
                    await asyncio.sleep(0.001)
        assert on_terminal.drawn().count("starting") >= 2

    def test_a_stop_from_the_keyboard_gives_the_terminal_back_and_its_end_takes_it_again(self) -> None:
        ours, theirs = pty.openpty()
        program = [sys.executable, "-c", _SHOWS]
        # a group of its own, whose parent is in another one of its session: of an orphaned group nobody is stopped
        with subprocess.Popen(program, stdin=subprocess.PIPE, stderr=theirs, process_group=0) as process:
            os.close(theirs)
            try:
                drawn = read_until(ours, "waiting")
                assert drawn.rindex(HIDE) > drawn.find(SHOW)
                process.send_signal(signal.SIGTSTP)
                os.waitpid(process.pid, os.WUNTRACED)
                assert SHOW in read_until(ours, SHOW)
                process.send_signal(signal.SIGCONT)
                drawn = read_until(ours, "waiting")
                assert HIDE in drawn
            finally:
                process.kill()
        os.close(ours)

    async def test_lines_stay_the_console_s_own(self, board: StatusBoard) -> None:
        said = io.StringIO()
        console = Console("lines", said)
        async with shown(StatusView.LINES, board, console):
            console.tell("a line")
        assert said.getvalue() == "a line\n"

    async def test_a_program_reads_stdout_and_people_stderr(
        self, board: StatusBoard, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = io.StringIO()
        console = Console("lines", said)
        board.events = console.events
        async with shown(StatusView.JSON, board, console):
            console.tell("a line")
        kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
        assert set(kinds) == {"client_event", "client_status"}
        assert said.getvalue() == "a line\n"
