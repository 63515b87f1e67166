"""Measurements of training as it is meant: over thin lines, with few bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bytes import QUICK, Bytes, Scale
from benchmarks.bytes import measure as measure_bytes
from benchmarks.bytes_figure import draw
from benchmarks.bytes_methods import METHODS
from benchmarks.links import Lines, Variant
from benchmarks.links import measure as measure_links
from benchmarks.report import report, report_each

app = typer.Typer()


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
