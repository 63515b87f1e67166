"""The farm in a minute, on one machine: `farm demo`."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import BaseModel
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import farm_client
from farm_client.cli.ending import finish
from farm_client.cli.exit_codes import ExitCode
from farm_client.cli.invocation import Invocation
from farm_client.cli.local_training import LocallyTrained, train_locally
from farm_client.cli.output import Output, OutputKind
from farm_client.cli.submit_options import SubmitOptions
from farm_client.sdk.watching.formatting import format_seconds
from protocol.errors import NotFound


def example_folder(name: str) -> Path:
    """Return the folder of an example. Raises: NotFound if this installation carries none."""
    package = Path(farm_client.__file__).parent
    for examples in (package / "_examples", package.parent / "examples"):
        if (examples / name).is_dir():
            return examples / name
    raise NotFound(f"this installation has no example {name!r}: install the aifarm package anew")


EXAMPLE: Final = "digits"
GOOD_ACCURACY: Final = 0.95
VOLUNTEERS: Final = 3


def demo(
    invocation: Invocation,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the results.")] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the farm running until Ctrl-C.")] = False,
) -> None:
    """Train digits on a farm of three volunteers on this machine: what it looks like, and that it works here."""
    output.mkdir(parents=True, exist_ok=True)
    model = output / "model.safetensors"
    options = SubmitOptions(file=example_folder(EXAMPLE), init_min_clients=VOLUNTEERS)
    with (
        tempfile.TemporaryDirectory(prefix="aifarm-demo-") as folder,
        train_locally(invocation.out, options, Path(folder), VOLUNTEERS, model) as trained,
    ):
        finish(trained.api, trained.task, invocation.out, goes_on=False)
        report = _report(trained, model, output / "status.html")
        invocation.out.emit(OutputKind.DEMO, report, lambda: _draw(report))
        if keep:
            _serve_until_interrupted(trained, invocation.out)
    if report.accuracy < GOOD_ACCURACY:
        invocation.out.complain(f"the held-out accuracy is {report.accuracy:.3f}; it should be {GOOD_ACCURACY} or more")
        raise typer.Exit(ExitCode.FAILURE)


class DemoReport(BaseModel):
    """What the demonstration came to."""

    accuracy: float
    """On held-out digits, from 0 to 1."""
    rounds: int
    train_seconds: float
    """From the first round's opening to the last one's commit."""
    model: Path
    page: str
    """The status page's address; it answers while the farm runs."""
    page_copy: Path


def _report(trained: LocallyTrained, model: Path, page_copy: Path) -> DemoReport:
    task = trained.task
    page_copy.write_text(trained.api.page(), encoding="utf-8")
    return DemoReport(
        accuracy=task.metrics.get("accuracy", 0.0),
        rounds=task.round,
        train_seconds=(task.finished_at or 0.0) - (task.started_at or 0.0),
        model=model,
        page=f"{trained.farm.address.url}/",
        page_copy=page_copy,
    )


def _draw(report: DemoReport) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    took = format_seconds(report.train_seconds)
    table.add_row("held-out accuracy", Text.assemble((f"{report.accuracy:.3f}", "bold green"), f" after {took}"))
    table.add_row("model", str(report.model))
    table.add_row("status page", f"{report.page} while the farm runs (farm demo --keep); a copy: {report.page_copy}")
    return table


def _serve_until_interrupted(trained: LocallyTrained, out: Output) -> None:
    out.say(f"the farm runs on; Ctrl-C ends it. From another terminal: export FARM_URL={escape(trained.farm.farm_url)}")
    try:
        signal.pause()
    except KeyboardInterrupt:
        out.say("ending the farm")
