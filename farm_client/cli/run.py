"""Training on a farm of one's own: `farm run train.py --local N`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from farm_client.cli.arguments import OutputOption
from farm_client.cli.ending import finish
from farm_client.cli.invocation import Invocation
from farm_client.cli.local_training import train_locally
from farm_client.cli.logs import show_prints
from farm_client.cli.output import OutputKind
from farm_client.cli.submit import chosen_mode
from farm_client.cli.submit_options import SubmitOptions
from farm_client.sdk.outcome import TaskOutcome, outcome_of


def run(
    invocation: Invocation,
    options: SubmitOptions,
    local: Annotated[int, typer.Option("--local", min=1, metavar="N", help="How many volunteers to start.")] = 2,
    output: OutputOption = Path("model.safetensors"),
) -> None:
    """Train with a farm that lives on this machine as long as the command, and fetch the model."""
    with (
        tempfile.TemporaryDirectory(prefix="aifarm-run-") as folder,
        train_locally(invocation.out, options, Path(folder), local, output) as result,
    ):
        if outcome_of(result.task) is TaskOutcome.COMPLETED:
            show_prints(result.api, result.task.task_id, invocation.out)
        finish(result.api, result.task, invocation.out, goes_on=False)
    report = {
        "task": result.task.model_dump(mode="json"),
        "path": str(output),
        "round": result.round,
        "notes": list(result.prepared.notes),
        **chosen_mode(result.prepared),
    }
    invocation.out.emit(OutputKind.RUN, report, lambda: Text(str(output)))
