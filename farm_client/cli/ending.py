"""What is shown of a task that is over: how it ended, what to look at, what to type next."""

from __future__ import annotations

from collections import deque

import typer
from rich.markup import escape

from farm_client.cli.exit_codes import ExitCode, code_of_outcome
from farm_client.cli.logs import LogPainter, names_on
from farm_client.cli.output import Output
from farm_client.sdk.api import FarmApi
from farm_client.sdk.feeds import read_all
from farm_client.sdk.outcome import TaskOutcome, outcome_of
from farm_client.sdk.watching.formatting import format_metrics, format_seconds
from protocol.rest import TaskView
from protocol.wording import counted

SHOWN_LOG_LINES = 15


def finish(api: FarmApi, task: TaskView, out: Output, *, goes_on: bool = True) -> None:
    """Say how the task ended and, on a farm that goes on, what to do next; leave unless it completed.

    Raises: typer.Exit for a task that failed or was cancelled.
    """
    outcome = outcome_of(task)
    if outcome is TaskOutcome.COMPLETED:
        out.say(f"[bold green]completed[/] {_summary(task)}")
    elif outcome is TaskOutcome.FAILED:
        _tell_failure(api, task, out)
    elif outcome is TaskOutcome.CANCELLED:
        out.say(f"[bold]cancelled[/] after {_place(task)}")
    if goes_on and outcome is not None:
        for command, purpose in _next_commands(task, outcome):
            out.say(f"  {escape(f'{command:<44}')} {purpose}")
    exit_code = ExitCode.OK if outcome is None else code_of_outcome(outcome)
    if exit_code is not ExitCode.OK:
        raise typer.Exit(exit_code)


def _summary(task: TaskView) -> str:
    took = (task.finished_at or 0.0) - (task.started_at or task.finished_at or 0.0)
    if task.items_total is not None:
        return f"{counted(task.samples_done, 'item')} in {format_seconds(took)}"
    quality = format_metrics(task.metrics)
    return f"{counted(task.round, 'round')} in {format_seconds(took)}" + (
        f"; held out: {escape(quality)}" if quality else ""
    )


def _tell_failure(api: FarmApi, task: TaskView, out: Output) -> None:
    painter = LogPainter(names_on(api))
    for line in deque(read_all(api.logs, task.task_id), maxlen=SHOWN_LOG_LINES):
        out.chatter.print(painter.draw(line))
    out.complain(f"{task.name} failed: {task.error or task.why}")


def _next_commands(task: TaskView, outcome: TaskOutcome) -> list[tuple[str, str]]:
    pull = (f"farm pull {task.task_id} -o model.safetensors", f"the model after {_place(task)}")
    if task.items_total is not None:
        pull = (f"farm results {task.task_id} --out results.jsonl", f"the outputs of {_place(task)}")
    if outcome is not TaskOutcome.FAILED:
        return [pull]
    return [
        (f"farm logs {task.task_id}", "all that its clients printed"),
        (f"farm retry {task.task_id}", f"go on after {_place(task)}, once the cause is gone"),
    ]


def _place(task: TaskView) -> str:
    """Return how far a task got: in rounds, or in the items of a map."""
    return counted(task.round, "round") if task.items_total is None else counted(task.samples_done, "item")
