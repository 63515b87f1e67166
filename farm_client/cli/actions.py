"""Changing a task's state: `farm pause`, `resume`, `cancel`, `retry`; and removing it: `farm rm`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from farm_client.cli.arguments import TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.api import Action


def pause(invocation: Invocation, task: TaskArgument) -> None:
    """Stop a task for now; its last committed round is kept and its clients are free."""
    _act(invocation, task, "pause")


def resume(invocation: Invocation, task: TaskArgument) -> None:
    """Let a paused task go on."""
    _act(invocation, task, "resume")


def cancel(invocation: Invocation, task: TaskArgument) -> None:
    """End a task for good; its last model can still be pulled."""
    _act(invocation, task, "cancel")


def retry(invocation: Invocation, task: TaskArgument) -> None:
    """Let a failed task try again from its last committed round."""
    _act(invocation, task, "retry")


def rm(
    invocation: Invocation,
    task: TaskArgument,
    force: Annotated[bool, typer.Option("--force", help="Cancel it first, if it is not over.")] = False,
) -> None:
    """Remove a task that is over: its model, its logs, its metrics, all that the farm has of it."""
    with invocation.api() as api:
        removed = api.remove(invocation.task(api, task).task_id, force=force)
    invocation.out.emit(OutputKind.REMOVED, removed)
    invocation.out.say(f"{removed.task_id} is removed")


def priority(
    invocation: Invocation,
    task: TaskArgument,
    number: Annotated[int, typer.Argument(metavar="N", min=0, max=9, help="9 is served first.")],
) -> None:
    """Serve a task sooner or later than before; what its clients compute now goes on."""
    with invocation.api() as api:
        view = api.prioritize(invocation.task(api, task).task_id, number)
    invocation.out.emit(OutputKind.TASK, view)
    invocation.out.say(f"{view.task_id} has priority [bold]{view.priority}[/]: {escape(view.why or view.state)}")


def _act(invocation: Invocation, reference: str, action: Action) -> None:
    with invocation.api() as api:
        task = api.act(invocation.task(api, reference).task_id, action)
    invocation.out.emit(OutputKind.TASK, task)
    invocation.out.say(f"{task.task_id} is [bold]{task.state}[/]: {escape(task.why)}")
