"""`farm watch` where no picture can be drawn: a line whenever the task got further."""

from __future__ import annotations

from string import digits
from typing import Final

from farm_client.cli.formatting import format_metrics, format_rate, format_value
from farm_client.cli.output import Output
from farm_client.cli.scene import Scene
from protocol.rest import TaskView

_NO_DIGITS: Final = str.maketrans("", "", digits)


class ProgressLines:
    """Prints a line when the round, the state, the reason or a metric has changed since the last one."""

    def __init__(self) -> None:
        self._shown: tuple[object, ...] = ()

    def show(self, scene: Scene, out: Output) -> None:
        """Print the scene's line on stdout, if it says something new; an absent farm is chatter."""
        task = scene.detail.task
        if scene.absent:
            out.say(scene.absent)
            return
        # Without its digits a reason that counts down ("again in 3 s") stays the same reason.
        reason = task.why.translate(_NO_DIGITS) if task.state != "running" else ""
        content = (task.round, task.state, reason, tuple(task.metrics.items()))
        if content != self._shown:
            out.results.print(progress_line(task), markup=False)
        self._shown = content


def progress_line(task: TaskView) -> str:
    """Return one line: ``running  round 3/20  loss 0.412  accuracy 0.93  1,234 samples/s  3 clients``."""
    parts = [
        task.state,
        f"round {task.round}/{task.rounds_total}",
        "" if task.loss is None else f"loss {format_value(task.loss)}",
        format_metrics({name: value for name, value in task.metrics.items() if name != "loss"}),
        format_rate(task.samples_per_second) if task.samples_per_second else "",
        f"{task.clients} client{'' if task.clients == 1 else 's'}" if task.clients else "",
        "" if task.state == "running" else task.why,
    ]
    return "  ".join(part for part in parts if part)
