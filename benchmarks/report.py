"""How measurements reach the terminal: one line of JSON each, chatter on stderr, an error as one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator

import typer

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.meters import describe_machine
from protocol.errors import FarmError


def report(measurements: Iterable[Callable[[], Measurement]]) -> None:
    """Take the measurements one by one, and print each as a line, after one that describes the machine."""
    report_each(measurement() for measurement in measurements)


def report_each(found: Iterator[Measurement]) -> None:
    """Print each measurement as a line as soon as it is there, after one that describes the machine.

    Raises: typer.Exit with code 1 after one line on stderr, if one could not be taken.
    """
    print(json.dumps({"benchmark": "machine", **describe_machine()}), flush=True)
    try:
        for measurement in found:
            print(measurement.to_json(), flush=True)
    except (BenchmarkError, FarmError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def say(what: str) -> None:
    """Tell whoever waits what is being done; stdout is for measurements."""
    print(what, file=sys.stderr, flush=True)


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


def known_names(text: str, known: Iterable[str]) -> list[str]:
    """Read ``mlp,lora``.

    Raises: typer.BadParameter naming what is not known.
    """
    names = text.split(",")
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"there is no {name!r}; known are {', '.join(known)}")
    return names
