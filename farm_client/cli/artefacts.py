"""What the ends of a task's epochs left: `farm artefacts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.cli.pull import transfer_bar
from farm_client.sdk.artefacts import list_artefacts, pull_artefacts, why_none
from farm_client.sdk.retrying import RETRY_SECONDS
from protocol.artefacts import ArtefactList
from protocol.terminal_text import one_line
from protocol.wording import counted, sized


def artefacts(
    invocation: Invocation,
    task: TaskArgument,
    epoch: Annotated[int | None, typer.Option("--epoch", min=0, metavar="N", help="Those of epoch N, from 0.")] = None,
    pull: Annotated[
        Path | None, typer.Option("--pull", metavar="DIR", help="Write the files to DIR/EPOCH/NAME.")
    ] = None,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """List the files that a task's `on_epoch_end` left, or fetch them."""
    with invocation.api(retry_seconds) as api:
        found = list_artefacts(api, invocation.task(api, task).task_id, epoch)
        if pull is not None:
            if not found.artefacts:
                raise why_none(found, epoch)
            with transfer_bar(invocation.out) as bar:
                total_bytes = sum(one.size_bytes for one in found.artefacts)
                shown = bar.add_task("download", total=total_bytes)
                pull_artefacts(api, found.artefacts, pull, lambda done: bar.advance(shown, done))
    data = {**found.model_dump(mode="json"), "folder": None if pull is None else str(pull)}
    invocation.out.emit(OutputKind.ARTEFACTS, data, lambda: _picture(found, epoch, pull))


def _picture(found: ArtefactList, epoch: int | None, folder: Path | None) -> RenderableType:
    """Return a line for each file, by its path under the folder that it is in."""
    names = [
        f"{one.epoch}/{one.name}" if folder is None else str(folder / str(one.epoch) / one.name)
        for one in found.artefacts
    ]
    lines = [one_line(f"{name}  {sized(one.size_bytes)}") for name, one in zip(names, found.artefacts, strict=True)]
    if not lines and found.error is None:
        lines.append(why_none(found, epoch).message)
    if found.error is not None:
        lines.append(one_line(f"the newest end of an epoch that failed: {found.error}"))
    if lines and folder is not None:
        lines.append(f"{counted(len(found.artefacts), 'file')} in {folder}")
    return Text("\n".join(lines))
