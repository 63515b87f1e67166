"""`farm watch` where no picture can be drawn: a line whenever the task got further."""

from __future__ import annotations

import re
import time
from typing import Final

from rich.markup import escape

from farm_client.cli.formatting import format_metrics, format_rate, format_value
from farm_client.cli.output import Output
from farm_client.cli.scene import Scene
from protocol.rest import TaskView
from protocol.wording import counted

REMINDER_SECONDS: Final = 30.0
"""A task that waits for the same reason says so again after this long: a log that stands still looks dead."""
_NUMBERS: Final = re.compile(r"(\d[\d.,:]*\s*((s|min|h|d)\b\s*)?)+")


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
