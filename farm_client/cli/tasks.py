"""Looking at tasks: `farm ls`, `farm show`, `farm why`."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.text import Text

from farm_client.cli.arguments import TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.cli.pictures import checkpoints_table, shards_table, task_detail, tasks_table


def ls(invocation: Invocation) -> None:
    """List the farm's tasks, newest first."""
    with invocation.api() as api:
        tasks = api.tasks()
    invocation.out.emit(OutputKind.TASKS, tasks, lambda: tasks_table(tasks, time.time()))


def show(
    invocation: Invocation,
    task: TaskArgument,
    shards: Annotated[bool, typer.Option("--shards", help="Audit the books: each sample once an epoch.")] = False,
) -> None:
    """Show a task: its state, recipe and newest rounds; with --shards, which samples were counted."""
    with invocation.api() as api:
        task_id = invocation.task(api, task).task_id
        if shards:
            books = api.shards(task_id)
            invocation.out.emit(OutputKind.SHARDS, books, lambda: shards_table(books))
        else:
            detail = api.task(task_id)
            invocation.out.emit(OutputKind.DETAIL, detail, lambda: task_detail(detail, time.time()))


def checkpoints(invocation: Invocation, task: TaskArgument) -> None:
    """List the checkpoints that a task keeps; `farm pull --round N` and `farm submit --from TASK@N` take one."""
    with invocation.api() as api:
        task_id = invocation.task(api, task).task_id
        kept = api.checkpoints(task_id)
        keep_best = api.task(task_id).spec.recipe.keep_best
    invocation.out.emit(OutputKind.CHECKPOINTS, kept, lambda: checkpoints_table(kept, keep_best, time.time()))


def why(invocation: Invocation, task: TaskArgument) -> None:
    """Say in one line what a task waits for."""
    with invocation.api() as api:
        task_id = invocation.task(api, task).task_id
        reason = api.why(task_id)
    invocation.out.emit(OutputKind.WHY, {"task_id": task_id, "why": reason}, lambda: Text(reason))
