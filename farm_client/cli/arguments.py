"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TaskArgument = Annotated[
    str, typer.Argument(metavar="TASK", help="A task's id, a unique beginning of it, or the task's name.")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Where to write the model.")]
RetryOption = Annotated[
    float,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        min=0,
        envvar="FARM_PATIENCE",
        help="For how long to try again while the farm does not answer (a restart, a broken link).",
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Give up waiting after so long.")
]
