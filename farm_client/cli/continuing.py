"""Going on from a task's checkpoint: `farm continue`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
from farm_client.sdk.continuing import Continuation
from farm_client.sdk.farm import Task
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.task_file import Given, laid_over, read_changes


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
    config: Annotated[
        Path | None, typer.Option("--config", help="A TOML file with what changes: its [recipe] and its [config].")
    ] = None
    set_values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the config that the code gets."),
    ] = None
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
        new = Task(api, invocation.task(api, task)).continued(_continuation(options))
        for note in new.notes:
            invocation.out.say(f"[bold yellow]note:[/] {escape(note)}")
        told = {"task": new.view().model_dump(mode="json"), "notes": list(new.notes)}
        invocation.out.emit(OutputKind.SUBMITTED, told, lambda: Text(new.id))
        if watch:
            finish(api, watch_task(api, new.id, invocation.out), invocation.out)


def _continuation(options: ContinueOptions) -> Continuation:
    """Merge the file of changes, if there is one, with the command line, which wins. Raises: InvalidTask."""
    given = Given() if options.config is None else read_changes(options.config)
    recipe = laid_over(given.recipe, changed_recipe(options))
    ends = {name: recipe.pop(name, None) for name in ("rounds", "epochs")}
    if options.rounds is not None or options.epochs is not None:  # when to stop is one decision
        ends = {"rounds": options.rounds, "epochs": options.epochs}
    return Continuation(
        rounds=ends["rounds"],
        round_number=options.round_number,
        best=options.best,
        recipe=said({"epochs": ends["epochs"]}) | recipe,
        config=given.config,
        assignments=options.set_values or (),
        name=options.name,
        submit_token=options.submit_token,
    )
