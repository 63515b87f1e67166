"""The outputs of a map: `farm results`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.ending import finish
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.map_failures import AllowedFailures, AllowOption, FailureTally
from farm_client.cli.output import Output, OutputKind
from farm_client.outputs import as_json
from farm_client.sdk.api import FarmApi
from farm_client.sdk.map_results import Seen, form_of, read_outputs, write_results
from farm_client.sdk.retrying import RETRY_SECONDS
from protocol.maps import OutputList
from protocol.rest import TaskView
from protocol.wording import counted

OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="Where results go: .jsonl as they come, or .npz, .parquet."),
]
RESULTS_FILE: Final = Path("results.jsonl")


def results(
    invocation: Invocation,
    task: TaskArgument,
    out: OutOption = None,
    start: Annotated[int, typer.Option("--from", min=0, metavar="N", help="Begin with item N.")] = 0,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the map is over.")] = False,
    allow_failures: AllowOption = None,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Give a map's outputs in the order of its items: what is there, or with --follow all."""
    allowed = AllowedFailures.read(allow_failures)
    if allow_failures is not None and not follow:
        raise BadUsage("--allow-failures is for a map that is over: give it with --follow")
    if out is not None:
        form_of(out)
    with invocation.api(retry_seconds) as api:
        found = invocation.task(api, task)
        give_outputs(invocation, api, found, out, start, allowed=allowed if follow else None)


def give_outputs(
    invocation: Invocation,
    api: FarmApi,
    task: TaskView,
    out: Path | None,
    start: int = 0,
    *,
    allowed: AllowedFailures | None = None,
) -> None:
    """Write outputs to a file, or to stdout a line each, and say which items failed.

    With ``allowed`` until the task is over: then say how it ended, and leave with an error where more items failed.
    """
    told, tally = invocation.out, FailureTally()
    with _progress(told, task) as seen:
        outputs = tally.over(read_outputs(api, task.task_id, start, follow=allowed is not None, seen=seen))
        if out is None:
            for position, output in enumerate(outputs, start):
                _print(told, position, output)
        else:
            count = write_results(outputs, out)
            data = {"task_id": task.task_id, "items": count, "failed": tally.failed, "path": str(out)}
            told.emit(OutputKind.RESULTS, data, lambda: Text(f"{out}: {counted(count, 'item')}"))
    tally.tell(told)
    if allowed is not None:
        finish(api, api.task(task.task_id).task, told)
        tally.leave(allowed, told)


def pull_results(invocation: Invocation, api: FarmApi, task: TaskView, output: Path) -> None:
    """Write what there is of a map's outputs to a file: what `farm pull` does of a task that is a map."""
    give_outputs(invocation, api, task, output)


def _print(out: Output, position: int, output: object) -> None:
    value = as_json(output)
    out.emit(
        OutputKind.OUTPUT, {"item": position, "output": value}, lambda: Text(json.dumps(value, ensure_ascii=False))
    )


@contextmanager
def _progress(out: Output, task: TaskView) -> Iterator[Seen]:
    """Show on a terminal how far the outputs are, how fast they come, and when they will all be there."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out.chatter, transient=True, disable=not out.chatter.is_terminal) as bar:
        shown = bar.add_task("outputs", total=task.items_total, speed="")
        began = time.monotonic()

        def seen(listed: OutputList) -> None:
            if (done := listed.end) is not None:
                speed = done / max(time.monotonic() - began, 1e-3)
                bar.update(shown, completed=done, total=listed.items, speed=f"{speed:,.0f} items/s")

        yield seen
