"""Mapping a function over data: `farm map`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.text import Text

from farm_client.cli.arguments import RetryOption
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.map_failures import AllowedFailures, AllowOption
from farm_client.cli.output import OutputKind
from farm_client.cli.results import OutOption, give_outputs
from farm_client.cli.submit import send
from farm_client.sdk.farm import Farm
from farm_client.sdk.map_results import form_of
from farm_client.sdk.map_submission import MapSubmission, prepare_map
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.submitter import submitter_here
from farm_client.sdk.task_file import changed_config
from protocol.maps import OnError
from protocol.rest import TaskView
from protocol.wording import counted

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE_OR_DIR", help="Your code with map_item or map_batch, or its folder.")
]


def map_(
    invocation: Invocation,
    file: FileArgument,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Files: .npz, .safetensors, Parquet, JSONL or text.")
    ] = None,
    items: Annotated[
        int | None, typer.Option("--range", metavar="N", help="Instead of data: the numbers from 0 to N - 1.")
    ] = None,
    out: OutOption = None,
    *,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Items that map_batch is given at once.")] = None,
    part: Annotated[
        int | None, typer.Option("--part", min=1, help="Items of a part; else by each client's measured speed.")
    ] = None,
    on_error: Annotated[
        OnError, typer.Option("--on-error", help="Where an item fails: skip it and go on, or stop.")
    ] = OnError.SKIP,
    allow_failures: AllowOption = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="TASK[@N]", help="A farm task's weights, for the function.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="DIR", help="A folder for the function: config['base'].")
    ] = None,
    requirements: Annotated[
        Path | None, typer.Option("--requirements", metavar="FILE", help="The packages to import, as for submit.")
    ] = None,
    set_values: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of config, as TOML.")
    ] = None,
    entry: Annotated[str | None, typer.Option("--entry", help="The file in the folder with the function.")] = None,
    name: Annotated[str, typer.Option("--name", help="What to call it.")] = "",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Each item draws its random numbers from this.")] = 0,
    priority: Annotated[int, typer.Option("--priority", min=0, max=9, help="Higher goes first.")] = 5,
    submit_token: Annotated[
        str | None, typer.Option("--submit-token", help="A repeat with this token is the same task.")
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not try the first items here.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Only submit; `farm results` has the outputs.")] = False,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Run a function on each item of a data set; its outputs come in order, each exactly once."""
    allowed = AllowedFailures.read(allow_failures)
    if detach and allow_failures is not None:
        raise BadUsage("--detach waits for no output: give --allow-failures to `farm results --follow`")
    if detach and out is not None:
        raise BadUsage("--detach waits for no output: leave out --out, and give it to `farm results`")
    if out is not None:
        form_of(out)
    with invocation.api(retry_seconds) as api:
        api.farm()
        farm = Farm.over(api)
        submission = MapSubmission(
            code=file,
            data=tuple(data or ()),
            items=items,
            config=changed_config({}, {}, set_values or ()),
            name=name,
            entry=entry,
            batch_items=batch,
            part_items=part,
            on_error=on_error,
            seed=seed,
            check=not no_check,
            priority=priority,
            submitter=submitter_here(),
            submit_token=submit_token,
            base=base,
            weights=farm.warm_start(weights) if weights else None,
            environment=requirements,
        )
        with tempfile.TemporaryDirectory(prefix="aifarm-map-") as folder:
            reply = send(farm, prepare_map(submission, Path(folder)), invocation.out)
        task = reply.task
        invocation.out.say(f"[bold]{escape(task.name)}[/] is task [bold]{task.task_id}[/]: a map of {_items(task)}")
        if detach:
            invocation.out.emit(OutputKind.SUBMITTED, reply, lambda: Text(task.task_id))
            invocation.out.say(
                f"  farm results {task.task_id} --follow --out results.jsonl     its outputs, as they come"
            )
            return
        give_outputs(invocation, api, task, out, allowed=allowed)


def _items(task: TaskView) -> str:
    return counted(task.items_total or 0, "item")
