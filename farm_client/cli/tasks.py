"""Looking at tasks: `farm ls`, `farm show`, `farm why`."""

from __future__ import annotations

import time
from itertools import islice
from typing import Annotated, Final

import typer
from rich.text import Text

from farm_client.cli.arguments import TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.watching.pictures import checkpoints_table, shards_table, task_detail, tasks_table

_NEWEST: Final = 50
_LARGEST_PAGE: Final = 1000
_MOST: Final = 1_000_000


def ls(
    invocation: Invocation,
    newest: Annotated[
        int | None, typer.Option("--newest", "-n", metavar="N", min=1, max=_MOST, help=f"So many, not {_NEWEST}.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, as --json does without --newest.")] = False,
) -> None:
    """List the farm's tasks, newest first: the newest 50, or all."""
    most = None if everything or (newest is None and invocation.out.as_json) else newest or _NEWEST
    with invocation.api() as api:
        found = api.each_task(None if most is None else min(most + 1, _LARGEST_PAGE))
        tasks = list(found if most is None else islice(found, most + 1))
    shown = tasks[:most]
    invocation.out.emit(OutputKind.TASKS, shown, lambda: tasks_table(shown, time.time()))
    if len(shown) < len(tasks):
        invocation.out.say(f"the newest {len(shown)} are shown: `farm ls --all` lists all, `--newest N` so many")


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
        found = invocation.task(api, task)
        task_id, reason = found.task_id, api.why(found.task_id)
        is_kept = found.error is not None and bool(api.task(task_id).failed_steps)
    invocation.out.emit(OutputKind.WHY, {"task_id": task_id, "why": reason}, lambda: Text(reason))
    if is_kept:
        invocation.out.say(f"`farm pull {task_id} --failed` fetches the state and the batch")
