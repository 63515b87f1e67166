"""Fetching a trained model: `farm pull`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from farm_client.cli.arguments import OutputOption, RetryOption, TaskArgument
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.cli.results import RESULTS_FILE, pull_results
from farm_client.sdk.failed_folder import FAILURE, pull_failed_steps
from farm_client.sdk.farm import Task
from farm_client.sdk.model_formats import MODEL_FILE, ModelFormat, WrittenAs
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.watching.formatting import format_metrics
from protocol.rest import ModelView
from protocol.terminal_text import one_line
from protocol.wording import counted, sized


def pull(
    invocation: Invocation,
    task: TaskArgument,
    output: OutputOption = MODEL_FILE,
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, metavar="N", help="The model after N rounds; else the newest.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best model, by the task's keep_best.")] = False,
    *,
    model_format: Annotated[
        ModelFormat,
        typer.Option(
            "--format",
            help="A file of safetensors, one for torch.load, a folder for from_pretrained of transformers or peft, or "
            "an ONNX file, for which the task's code runs here.",
        ),
    ] = ModelFormat.SAFETENSORS,
    merged: Annotated[
        bool, typer.Option("--merged", help="With --format hf: an adapter merged into its base.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="State and batch of the steps in which its code failed, as a folder.")
    ] = False,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Fetch a task's model: a safetensors file for `model.load_state_dict(load_file(…))`, or another format."""
    if failed:
        if best or merged or round_number is not None or model_format is not ModelFormat.SAFETENSORS:
            raise BadUsage("--failed fetches no model: leave out --round, --best, --format and --merged")
        _pull_failed(invocation, task, output, retry_seconds)
        return
    form = WrittenAs.named(model_format, merged=merged)
    output = form.place(output)
    with invocation.api(retry_seconds) as api:
        view = invocation.task(api, task)
        if view.items_total is not None:
            pull_results(invocation, api, view, RESULTS_FILE if output == MODEL_FILE else output)
            return
        pulled = Task(api, view)
        model = pulled.found(round_number, best=best)
        fetch(pulled, model, output, invocation.out, form)
    data = {**model.model_dump(), "path": str(output)}
    text = f"{output}: after {counted(model.round, 'round')}, {sized(model.size_bytes)}"
    invocation.out.emit(
        OutputKind.MODEL, data, lambda: Text("  ".join(filter(None, [text, format_metrics(model.metrics)])))
    )


def _pull_failed(invocation: Invocation, task: str, output: Path, retry_seconds: float) -> None:
    with invocation.api(retry_seconds) as api:
        task_id = invocation.task(api, task).task_id
        folder = Path(f"failed-{task_id}") if output == MODEL_FILE else output
        folders = pull_failed_steps(api, task_id, folder)
    data = {"task_id": task_id, "folders": [str(one) for one in folders]}
    invocation.out.emit(OutputKind.FAILED_STEPS, data, lambda: Text("\n".join(_failure_line(one) for one in folders)))
    invocation.out.say(escape(f'from farm_client import load_failed; step = load_failed("{folders[0]}")'))
    invocation.out.say("model.load_state_dict(step.weights, strict=False); loss(model.train(), step.batch)")


def _failure_line(folder: Path) -> str:
    about = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    return one_line(f"{folder}: round {about.get('round')}, step {about.get('step')}: {about.get('error')}")


def fetch(task: Task, model: ModelView, output: Path, out: Output, form: WrittenAs | None = None) -> None:
    """Download a model, with a progress bar on a terminal."""
    with transfer_bar(out) as bar:
        frozen_bytes = model.frozen.size_bytes if model.frozen else 0
        shown = bar.add_task("download", total=model.size_bytes + frozen_bytes)
        try:
            task.fetch(model, output, lambda done: bar.advance(shown, done), form or WrittenAs())
        except KeyboardInterrupt:
            out.say("[dim]what came is kept: the same command goes on from there[/]")
            raise


def transfer_bar(out: Output) -> Progress:
    """Return a progress bar in bytes; it shows nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=out.chatter, transient=True, disable=not out.chatter.is_terminal)
