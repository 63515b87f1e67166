"""Measurements of what training comes to: the order of the data, and the model beside a plain loop's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.measurement import Measurement
from benchmarks.order import LAYOUTS, SUBJECTS, compare
from benchmarks.quality import EPOCHS, MODELS, MODES, Run
from benchmarks.quality_grid import measured_in, runs_of, summaries, sweep
from benchmarks.report import known_names, report, report_each, whole_numbers

app = typer.Typer()


@app.command()
def order(
    models: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(SUBJECTS),
    epochs: Annotated[str, typer.Option(help="Lengths of training, as a list of epochs.")] = "1,3",
    seeds: Annotated[int, typer.Option(min=2, help="Starting weights, and parts of the data that are held out.")] = 10,
    orders: Annotated[int, typer.Option(min=1, help="Trainings of each side for a seed.")] = 6,
) -> None:
    """The farm's order of samples against random orders, in one process: the ratio of held-out losses."""
    report(
        partial(compare, model, data, whole_rounds, count, seeds, orders)
        for model in known_names(models, SUBJECTS)
        for count in whole_numbers(epochs)
        for data in LAYOUTS
        for whole_rounds in (False, True)
    )


@app.command("quality")
def quality_of_models(
    models: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(MODELS),
    modes: Annotated[str, typer.Option(help="Which ones, separated by commas.")] = ",".join(MODES),
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,2,8",
    seeds: Annotated[int, typer.Option(min=1, help="Starting weights and orders, for both sides.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Length of each training.")] = EPOCHS,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time; losses do not depend on it.")] = 1,
    out: Annotated[Path | None, typer.Option(help="File that keeps the lines; what it has is not done again.")] = None,
) -> None:
    """Held-out losses of models that a farm trains, beside those of a plain loop at equal samples."""
    counts = whole_numbers(clients)
    runs = runs_of(known_names(models, MODELS), known_names(modes, MODES), counts, range(seeds), epochs)
    report_each(_kept(runs, out, jobs))


def _kept(runs: list[Run], out: Path | None, jobs: int) -> Iterator[Measurement]:
    """Yield what is measured, and write it down before; at the end the summaries, earlier calls included."""
    found = measured_in(out) if out else []
    for quality in sweep(runs, list(found), jobs):
        found.append(quality)
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(quality.to_json() + "\n")
        yield quality
    yield from summaries(found)
