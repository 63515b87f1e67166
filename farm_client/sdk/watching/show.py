"""Showing a task's moments as they come: a picture that changes in a notebook or on a terminal, else lines."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live

from farm_client.sdk.watching.formatting import format_metrics, format_rate, format_value
from farm_client.sdk.watching.live_picture import draw_scene
from farm_client.sdk.watching.scene import Scene
from protocol.rest import TaskView
from protocol.wording import counted

REMINDER_SECONDS: Final = 30.0
"""A task that waits for the same reason says so again after this long: a log that stands still looks dead."""
NOTEBOOK_COLUMNS: Final = 100
_NOTEBOOK_HTML: Final = '<pre style="line-height:normal;font-family:monospace">{code}</pre>'
_NUMBERS: Final = re.compile(r"(\d[\d.,:]*\s*((s|min|h|d)\b\s*)?)+")

Show = Callable[[Scene], None]


@contextmanager
def showing(console: Console | None = None, say: Callable[[str], None] | None = None) -> Iterator[Show]:
    """Give what shows a scene on a console (stdout's, if none is given), in place of the scene before it if it can.

    ``say`` gets what is no result: that the farm is away. It goes to the console where there is none.
    """
    console = console or Console(highlight=False, emoji=False)
    if console.is_jupyter:
        yield NotebookPicture().show
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda scene: live.update(draw_scene(scene), refresh=True)
    else:
        lines = ProgressLines(lambda text: console.print(text, markup=False), say)
        yield lines.show


class _Handle(Protocol):
    def update(self, shown: object) -> None:
        """Show something else in its place."""


class NotebookPicture:
    """The live picture in the output of a notebook's cell; needs nothing but the IPython that runs there."""

    def __init__(self) -> None:
        self._handle: _Handle | None = None

    def show(self, scene: Scene) -> None:
        """Show a scene in place of the last one."""
        from IPython.display import HTML, display  # noqa: PLC0415 - it is there in a notebook only

        picture = HTML(picture_html(scene))  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = display(picture, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(picture)


def picture_html(scene: Scene) -> str:
    """Return the live picture as HTML with inline styles. All text is escaped."""
    console = Console(
        record=True, file=io.StringIO(), width=NOTEBOOK_COLUMNS, force_jupyter=False, highlight=False, emoji=False
    )
    console.print(draw_scene(scene))
    return console.export_html(inline_styles=True, code_format=_NOTEBOOK_HTML)


class ProgressLines:
    """Writes a line when the round, the state, the reason or a metric has changed since the last one.

    ``write`` gets the lines, ``say`` that the farm is away (``write`` as well, if it is absent).
    """

    def __init__(self, write: Callable[[str], None], say: Callable[[str], None] | None = None) -> None:
        self._write = write
        self._say = say or write
        self._shown: tuple[object, ...] = ()
        self._shown_at = 0.0

    def show(self, scene: Scene) -> None:
        """Write the scene's line, if it says something new."""
        task = scene.detail.task
        content = (scene.absent,) if scene.absent else _content(task)
        now = time.monotonic()
        if content == self._shown and now - self._shown_at < REMINDER_SECONDS:
            return
        self._shown, self._shown_at = content, now
        if scene.absent:
            self._say(scene.absent)
        else:
            self._write(progress_line(task))


def _content(task: TaskView) -> tuple[object, ...]:
    """Return what makes a line new. A reason that counts down ("again in 1 min 03 s") stays the same reason."""
    reason = _NUMBERS.sub("#", task.why) if task.state != "running" else ""
    return (task.round, task.state, reason, tuple(task.metrics.items()))


def progress_line(task: TaskView) -> str:
    """Return one line: ``running  round 3/20  loss 0.412  accuracy 0.93  1,234 samples/s  3 clients``."""
    parts = [
        task.state,
        f"round {task.round}/{task.rounds_total}",
        "" if task.loss is None else f"loss {format_value(task.loss)}",
        format_metrics({name: value for name, value in task.metrics.items() if name != "loss"}),
        format_rate(task.samples_per_second) if task.samples_per_second else "",
        counted(task.clients, "client") if task.clients else "",
        "" if task.state == "running" else task.why,
    ]
    return "  ".join(part for part in parts if part)
