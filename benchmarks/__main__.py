"""``python -m benchmarks``: choose a measurement."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Protocol

import typer

from benchmarks.churn import CLIENTS as CHURN_CLIENTS
from benchmarks.churn import measure as measure_churn
from benchmarks.farm import BenchmarkError
from benchmarks.goodput import measure as measure_goodput
from benchmarks.meters import describe_machine
from benchmarks.recovery import Victim
from benchmarks.recovery import measure as measure_recovery
from benchmarks.rounds import Case, measure
from benchmarks.transitions import measure as measure_transitions
from protocol.errors import FarmError
from protocol.recipe import Mode

app = typer.Typer(help="Measurements of the whole farm on loopback, as JSON lines.", no_args_is_help=True)


class Measurement(Protocol):
    """What a benchmark found."""

    def to_json(self) -> str:
        """Return one line of JSON."""


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


@app.command()
def goodput(
    mode: Annotated[list[Mode] | None, typer.Option(help="What clients return; both when not given.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the window with kills.")] = 45.0,
) -> None:
    """The share of a farm's speed that is left with one kill every 15 s: a client, an executor, the server in turn."""
    _report([partial(measure_goodput, each, clients, seconds) for each in mode or list(Mode)])


@app.command()
def churn(
    seconds: Annotated[float, typer.Option(min=5, help="How long clients come and go.")] = 300.0,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = CHURN_CLIENTS,
) -> None:
    """The server's memory after clients came and went for minutes, beside its value after a fifth of the time."""
    _report([partial(measure_churn, seconds, clients)])


@app.command()
def recovery(
    kills: Annotated[int, typer.Option(min=1, help="Kills of each victim.")] = 20,
    victim: Annotated[list[Victim] | None, typer.Option(help="Who is killed; each when not given.")] = None,
) -> None:
    """Seconds from a SIGKILL to the next committed round."""
    _report([partial(measure_recovery, each, kills) for each in victim or list(Victim)])


@app.command()
def transitions(
    writers: Annotated[str, typer.Option(help="Numbers of concurrent writers.")] = "1,64,1000",
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each window.")] = 5.0,
    folder: Annotated[Path | None, typer.Option(help="A folder on the disk to measure.")] = None,
) -> None:
    """Durable task-state transitions per second, beside plain sqlite3 with one transaction for each."""
    _report([partial(measure_transitions, count, seconds, folder) for count in whole_numbers(writers)])


def _report(measurements: Iterable[Callable[[], Measurement]]) -> None:
    """Take the measurements one by one, and print each as a line."""
    print(json.dumps({"benchmark": "machine", **describe_machine()}), flush=True)
    for measurement in measurements:
        try:
            print(measurement().to_json(), flush=True)
        except (BenchmarkError, FarmError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
