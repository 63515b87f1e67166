"""Shows a status as it changes: a live panel on a terminal, JSON lines for a program, plain lines else.

What shows runs in a thread of its own. A terminal that takes nothing (Ctrl-S, a link that hangs) stops the thread, and
not the agent's loop with its heartbeats. Only a panel imports rich: an agent without a terminal never holds it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from enum import StrEnum
from typing import IO, Final, Protocol, TextIO

from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.status import Status, StatusBoard

SCHEMA: Final = 1
_STEP_SECONDS: Final = 1.0
_CLOSING_SECONDS: Final = 2.0
"""A terminal that takes nothing for so long is left as it is."""
_STILL_SECONDS: Final = 10.0
"""A program hears the status so often although nothing but measured values changes."""


class StatusView(StrEnum):
    """How a person or program looks at an agent."""

    PANEL = "panel"
    LINES = "lines"
    JSON = "json"


def chosen_view(*, as_json: bool, log_format: str, stream: TextIO) -> StatusView:
    """Return JSON if it was asked for, the panel if ``stream`` is a terminal that can draw one, else lines."""
    if as_json:
        return StatusView.JSON
    can_draw = stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return StatusView.PANEL if can_draw and log_format == "lines" else StatusView.LINES


class Screen(Protocol):
    """What shows one status after the other. All calls come from one thread."""

    def show(self, status: Status) -> None:
        """Show it in place of the one before."""

    def close(self) -> None:
        """Leave what it draws on as it was found."""


class PanelScreen:
    """A panel that changes in its place; the last one stays when it is closed."""

    def __init__(self, stream: IO[str], hint: str | None = None) -> None:
        from rich.console import Console as RichConsole  # noqa: PLC0415 - only with a terminal
        from rich.live import Live  # noqa: PLC0415

        console = RichConsole(file=stream, highlight=False, emoji=False, markup=False)
        # rich would put its own streams in the place of the process's, which other threads write to
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._hint = {} if hint is None else {"hint": hint}
        self._stream = stream
        self._most_sent = self._most_received = 0.0
        self._live.start()

    def show(self, status: Status) -> None:
        """Draw it; the network bars are full at the most that was seen."""
        from farm_client.agent.reporting.panel import StatusPanel  # noqa: PLC0415

        self._most_sent = max(self._most_sent, status.speeds.sent_bytes)
        self._most_received = max(self._most_received, status.speeds.received_bytes)
        panel = StatusPanel(status, most_sent=self._most_sent, most_received=self._most_received, **self._hint)
        self._live.update(panel, refresh=True)

    def close(self) -> None:
        """Show the cursor again, under the last panel."""
        self._live.stop()
        self._stream.close()


class StatusEnvelopes:
    """Envelopes, one a line: ``client_event`` for each event; ``client_status`` when more than measures change."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._seen = 0
        self._last: dict[str, object] = {}
        self._written_at = 0.0

    def show(self, status: Status) -> None:
        """Write what is new."""
        for event in status.events:
            if event.number > self._seen:
                self._seen = event.number
                self._envelope("client_event", event.model_dump(mode="json"))
        told = status.model_dump(mode="json", exclude={"cache", "moved", "speeds", "machine", "events", "updated_at"})
        if told != self._last or status.updated_at - self._written_at >= _STILL_SECONDS:
            self._last, self._written_at = told, status.updated_at
            self._envelope("client_status", {"running": True, **status.model_dump(mode="json", exclude={"events"})})

    def close(self) -> None:
        """Nothing is to be undone."""

    def _envelope(self, kind: str, data: dict[str, object]) -> None:
        self._write(json.dumps({"schema": SCHEMA, "kind": kind, "data": data}))


class ScreenThread:
    """Shows statuses in a thread: of those that come while it is busy, the newest."""

    def __init__(self, make: Callable[[], Screen]) -> None:
        """``make`` is called in the thread. What it or its screen raises ends the view, and nothing else."""
        self._make = make
        self._news = threading.Condition()
        self._next: Status | None = None
        self._last: Status | None = None
        self._closing = self._is_away = False
        self._put_away = threading.Event()
        """Set while nothing is drawn."""
        # a daemon, because one that a terminal holds must not hold the process
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._thread.start()

    def offer(self, status: Status) -> None:
        """Have it shown; never waits."""
        with self._news:
            self._next = status
            self._news.notify()

    def put_away(self) -> None:
        """Restore the terminal, until ``come_back``; waits a moment for that, and no longer."""
        with self._news:
            self._is_away = True
            self._news.notify()
        self._put_away.wait(_CLOSING_SECONDS)

    def come_back(self) -> None:
        """Draw anew what was shown last."""
        with self._news:
            self._is_away = False
            self._next = self._next or self._last
            self._news.notify()

    def close(self) -> None:
        """Show what was offered last, restore the terminal and end; waits a moment for that, and no longer."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone costs the view, not the agent
            while self._is_here():
                screen = self._make()
                self._put_away.clear()
                try:
                    while (status := self._awaited()) is not None:
                        screen.show(status)
                finally:
                    screen.close()
                    self._put_away.set()

    def _is_here(self) -> bool:
        """Wait while it is put away; return whether anything is to be shown."""
        with self._news:
            while self._is_away and not self._closing:
                self._news.wait()
            return not self._is_away and not (self._closing and self._next is None)

    def _awaited(self) -> Status | None:
        with self._news:
            while self._next is None and not self._closing and not self._is_away:
                self._news.wait()
            if self._is_away:
                return None
            status, self._next = self._next, None
            self._last = status or self._last
            return status


def own_stream(stream: TextIO) -> IO[str]:
    """Open a terminal a second time: a thread that it holds has no lock that the process needs at its end."""
    return os.fdopen(os.dup(stream.fileno()), "w", encoding=stream.encoding, errors=stream.errors)


def screen_for(view: StatusView, hint: str | None = None) -> Callable[[], Screen]:
    """Return what makes a view's screen: JSON on stdout, or the panel on stderr. ``hint`` is the panel's last line."""
    if view is StatusView.JSON:
        return lambda: StatusEnvelopes(lambda line: print(line, flush=True))  # noqa: T201 - it is the command's output
    return lambda: PanelScreen(own_stream(sys.stderr), hint)


@contextmanager
def given_back_while_stopped(thread: ScreenThread) -> Iterator[None]:
    """Have Ctrl-Z restore the terminal before this process stops, and draw again when it goes on, for a block."""
    number = getattr(signal, "SIGTSTP", None)
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_arguments: object) -> None:
        thread.put_away()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # stops here; what follows is done when the shell lets it go on
        signal.signal(number, stop)
        thread.come_back()

    before = signal.getsignal(number)
    if before is signal.SIG_DFL:  # who ignores it, such as a process without job control, goes on doing so
        signal.signal(number, stop)
    try:
        yield
    finally:
        if before is signal.SIG_DFL:
            signal.signal(number, before)


@asynccontextmanager
async def shown(view: StatusView, board: StatusBoard, console: Console) -> AsyncIterator[None]:
    """Show the board's status each second for the length of a block.

    Lines are the console's own. A panel takes their place, and keeps the last of them. A program gets both.
    """
    if view is StatusView.LINES:
        yield
        return
    thread = ScreenThread(screen_for(view))
    following = asyncio.get_running_loop().create_task(_follow(thread, board))
    is_panel = view is StatusView.PANEL
    with (
        given_back_while_stopped(thread) if is_panel else nullcontext(),
        console.muted() if is_panel else nullcontext(),
    ):
        try:
            yield
        finally:
            following.cancel()
            thread.offer(board.snapshot())
            thread.close()


async def _follow(thread: ScreenThread, board: StatusBoard) -> None:
    while True:
        thread.offer(board.snapshot())
        await asyncio.sleep(_STEP_SECONDS)
