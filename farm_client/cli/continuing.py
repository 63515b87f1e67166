"""Going on from a task's checkpoint: `farm continue`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.markup import escape
from rich.text import Text

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.ending import finish
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.cli.recipe_options import RecipeOptions, changed_recipe, said
from farm_client.cli.watch import watch_task
from farm_client.sdk.farm import Task
from farm_client.sdk.retrying import RETRY_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinueOptions(RecipeOptions):
    """From where to go on, how long, and what of the recipe changes."""

    rounds: Annotated[
        str | None, typer.Option("--rounds", metavar="+N|N", help="So many more, or so many in all; else to its end.")
    ] = None
    epochs: Annotated[
        float | None, typer.Option("--epochs", min=0, help="Stop after so many passes over the data, in all.")
    ] = None
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, metavar="N", help="From the checkpoint after N rounds.")
    ] = None
    best: Annotated[bool, typer.Option("--best", help="From the best checkpoint, by the task's keep_best.")] = False
    name: Annotated[str, typer.Option("--name", help="What to call it; else as the task before.")] = ""
    submit_token: Annotated[
        str | None, typer.Option("--submit-token", help="A repeat with the same token makes no second task.")
    ] = None


def continue_(
    invocation: Invocation,
    task: TaskArgument,
    options: ContinueOptions,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on watching until it is over.")] = False,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Make a new task that goes on from a checkpoint of another, with its code, data, schedules and optimizers."""
    with invocation.api(retry_seconds) as api:
        new = Task(api, invocation.task(api, task)).continue_(
            options.rounds,
            round_number=options.round_number,
            best=options.best,
            recipe=said({"epochs": options.epochs}) | changed_recipe(options),
            name=options.name,
            submit_token=options.submit_token,
        )
        for note in new.notes:
            invocation.out.say(f"[bold yellow]note:[/] {escape(note)}")
        told = {"task": new.view().model_dump(mode="json"), "notes": list(new.notes)}
        invocation.out.emit(OutputKind.SUBMITTED, told, lambda: Text(new.id))
        if watch:
            finish(api, watch_task(api, new.id, invocation.out), invocation.out)
