"""Following a task as it trains: `farm watch`, and the same after `submit --watch`, `run` and `demo`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.live import Live
from rich.markup import escape

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.ending import finish
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.sdk.api import FarmApi
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.watching.formatting import format_metrics, format_rate, format_value
from farm_client.sdk.watching.live_picture import draw_scene
from farm_client.sdk.watching.scene import Scene, scenes
from protocol.rest import TaskView
from protocol.wording import counted

REMINDER_SECONDS: Final = 30.0
"""A task that waits for the same reason says so again after this long: a log that stands still looks dead."""
_NUMBERS: Final = re.compile(r"(\d[\d.,:]*\s*((s|min|h|d)\b\s*)?)+")


Show = Callable[[Scene], None]


def watch(invocation: Invocation, task: TaskArgument, retry_seconds: RetryOption = RETRY_SECONDS) -> None:
    """Watch a task live until it is over; the exit code tells how it ended."""
    with invocation.api(retry_seconds, from_start=True) as api:
        last = watch_task(api, invocation.task(api, task).task_id, invocation.out)
        finish(api, last, invocation.out)


def watch_task(api: FarmApi, task_id: str, out: Output, guard: Callable[[], None] = lambda: None) -> TaskView:
    """Show the task until it is over: a live picture on a terminal, else lines. Return its last view.

    ``guard`` is called between two looks; what it raises ends the watch.
    """
    with _show(out) as show:
        for scene in scenes(api, task_id):
            show(scene)
            guard()
    return scene.detail.task


@contextmanager
def _show(out: Output) -> Iterator[Show]:
    if out.as_json:
        yield lambda scene: _emit(scene, out)
    elif out.live:
        with Live(console=out.results, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda scene: live.update(draw_scene(scene), refresh=True)
    else:
        lines = ProgressLines()
        yield lambda scene: lines.show(scene, out)


def _emit(scene: Scene, out: Output) -> None:
    for event in scene.fresh:
        out.emit(OutputKind.EVENT, event)
    out.emit(OutputKind.TASK, scene.detail.task)


class ProgressLines:
    """Prints a line when the round, the state, the reason or a metric has changed since the last one."""

    def __init__(self) -> None:
        self._shown: tuple[object, ...] = ()
        self._shown_at = 0.0

    def show(self, scene: Scene, out: Output) -> None:
        """Print the scene's line on stdout, if it says something new; an absent farm is chatter."""
        task = scene.detail.task
        content = (scene.absent,) if scene.absent else _content(task)
        now = time.monotonic()
        if content == self._shown and now - self._shown_at < REMINDER_SECONDS:
            return
        self._shown, self._shown_at = content, now
        if scene.absent:
            out.say(escape(scene.absent))
        else:
            out.results.print(progress_line(task), markup=False)


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
