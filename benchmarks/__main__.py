"""``python -m benchmarks``: choose a measurement."""

from __future__ import annotations

import json
import signal
import sys
from itertools import product
from typing import Annotated

import typer

from benchmarks.farm import BenchmarkError
from benchmarks.meters import describe_machine
from benchmarks.rounds import Case, measure
from protocol.errors import FarmError
from protocol.recipe import Mode

app = typer.Typer(help="Measurements of the whole farm on loopback, as JSON lines.", no_args_is_help=True)


@app.callback()
def choose() -> None:
    """Measurements of the whole farm on loopback, as JSON lines."""
    # Whoever ends a benchmark ends its farm too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def whole_numbers(text: str) -> list[int]:
    """Read ``2,8`` or ``1e5,1e7``.

    Raises: typer.BadParameter if one is no whole number over 0.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 2,8 or 1e5,1e7") from error
    if any(value < 1 or value != int(value) for value in values):
        raise typer.BadParameter(f"{text!r} holds something else than whole numbers over 0")
    return [int(value) for value in values]


@app.command()
def rounds(
    clients: Annotated[str, typer.Option(help="Numbers of clients, such as 2,8.")] = "2,8",
    params: Annotated[str, typer.Option(help="Numbers of model parameters, such as 1e5,1e7.")] = "1e5,1e7",
    mode: Annotated[Mode, typer.Option(help="What clients return.")] = Mode.GRADIENTS,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measured window.")] = 10.0,
) -> None:
    """Rounds per second of a task that trains nothing, for each pair of clients and parameters."""
    print(json.dumps({"benchmark": "machine", **describe_machine()}), flush=True)
    for size, count in product(whole_numbers(params), whole_numbers(clients)):
        print(f"{count} clients, {size:.0e} parameters, {mode} …", file=sys.stderr, flush=True)
        try:
            print(measure(Case(count, size, mode.value, seconds)).to_json(), flush=True)
        except (BenchmarkError, FarmError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
