"""Measurements of training as it is meant: over thin lines, with few bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bytes import QUICK, Bytes, Scale
from benchmarks.bytes import measure as measure_bytes
from benchmarks.bytes_figure import draw
from benchmarks.bytes_methods import METHODS
from benchmarks.executor import MODELS
from benchmarks.executor import measure as measure_executor
from benchmarks.links import Lines, Variant
from benchmarks.links import measure as measure_links
from benchmarks.report import known_names, report, report_each
from benchmarks.sandbox import measure as measure_sandbox
from benchmarks.uneven import MODES as WAYS_OF_WAITING
from benchmarks.uneven import Pace
from benchmarks.uneven import measure as measure_uneven
from benchmarks.whole import MODES, SHAPES, Length
from benchmarks.whole import measure as measure_whole

app = typer.Typer()


class Device(StrEnum):
    """Where a measurement trains."""

    CPU = "cpu"
    CUDA = "cuda"


def _known_methods(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in METHODS:
            raise typer.BadParameter(f"there is no {name!r}; known are {', '.join(METHODS)}")
    return names or list(METHODS)


@app.command("bytes")
def bytes_to_a_loss(
    method: Annotated[
        list[str] | None,
        typer.Option(help="Ways of training beside the reference; all when not given.", callback=_known_methods),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Show in seconds that it works, and measure nothing.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Write bytes against loss to this file, as SVG.")] = None,
) -> None:
    """Bytes up and down until a transformer has a fixed held-out loss: synchronous, local steps, DiLoCo with codecs."""
    found: list[Bytes] = []
    report_each(_kept(measure_bytes(method or [], QUICK if quick else Scale()), found))
    if figure is not None:
        draw(found, figure)


def _kept(measurements: Iterable[Bytes], found: list[Bytes]) -> Iterator[Bytes]:
    """Pass the measurements on, and keep them in ``found``."""
    for measurement in measurements:
        found.append(measurement)
        yield measurement


@app.command()
def links(
    variant: Annotated[list[Variant] | None, typer.Option(help="Which ones; all when not given.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients, each with a line of its own.")] = 4,
    params: Annotated[float, typer.Option(min=1, help="Number of model parameters.")] = 1e7,
    mbit: Annotated[float, typer.Option(min=0.1, help="Bandwidth of each line and direction, in Mbit/s.")] = 100.0,
    delay: Annotated[float, typer.Option(min=0, help="Delay of each direction, in seconds.")] = 0.1,
    round_compute: Annotated[float, typer.Option(min=0.1, help="Seconds that a client computes in a round.")] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each measured window.")] = 60.0,
) -> None:
    """The share of time that clients compute behind thin lines: plain, with int8, and with pipelining too."""
    lines = Lines(clients, int(params), mbit * 1e6, delay, round_compute)
    report([partial(measure_links, each, lines, seconds) for each in variant or list(Variant)])


@app.command("executor")
def executor_speed(
    models: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(MODELS),
    device: Annotated[Device, typer.Option(help="What to train on.")] = Device.CPU,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each turn.")] = 10.0,
    threads: Annotated[int, typer.Option(min=1, help="CPU cores to compute with, each way.")] = 1,
) -> None:
    """Samples per second of the executor beside the plain loop of the same model, batch and data, in turns."""
    report([partial(measure_executor, name, device.value, seconds, threads) for name in known_names(models, MODELS)])


@app.command()
def sandbox(
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each turn of training.")] = 4.0,
) -> None:
    """What each rung of the sandbox costs a process's start, training steps and memory, beside none, in turns."""
    report_each(measure_sandbox(seconds))


@app.command()
def whole(
    params: Annotated[str, typer.Option(help="The model's size: small, mid (2e7 parameters) or 124m.")] = "small",
    device: Annotated[Device, typer.Option(help="What to train on.")] = Device.CPU,
    modes: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(("plain", *MODES)),
    steps: Annotated[int, typer.Option(min=1, help="Local steps of a round.")] = 200,
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each run.")] = 5,
) -> None:
    """A whole run with one client, from the first assignment to the last commit, beside the plain loop."""
    [shape] = known_names(params, SHAPES)[:1]
    report_each(measure_whole(Length(shape, device.value, steps, rounds), known_names(modes, ("plain", *MODES))))


@app.command()
def uneven(
    modes: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(WAYS_OF_WAITING),
    seconds: Annotated[float, typer.Option(min=1, help="Length of each training.")] = 60.0,
    unit: Annotated[float, typer.Option(min=1, help="Samples per second of the slowest machine.")] = 40.0,
    round_seconds: Annotated[float, typer.Option(min=0.1, help="Length of a round.")] = 4.0,
) -> None:
    """Machines of speeds 1, 2, 4 and 8: what they do together of what they do alone, and the loss at equal time."""
    pace = Pace(unit_samples_per_s=unit, round_seconds=round_seconds, seconds=seconds)
    report_each(measure_uneven(known_names(modes, WAYS_OF_WAITING), pace))
