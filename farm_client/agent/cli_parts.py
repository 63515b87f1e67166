"""What the commands of `farm-client` share: options, and how JSON is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

SCHEMA: Final = 1

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Folder of the identity, the cache and scratch files.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def print_envelope(kind: str, data: dict[str, Any]) -> None:
    """Print one JSON object on stdout: docs/reference/json-output.md."""
    typer.echo(json.dumps({"schema": SCHEMA, "kind": kind, "data": data}))
