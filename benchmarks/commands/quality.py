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
from benchmarks.recipes import QUICK, Length, RecipeRun, known_recipes, means_of
from benchmarks.recipes import measure as measure_recipes
from benchmarks.recipes_figure import draw
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


@app.command("recipes")
def named_recipes(
    recipes: Annotated[str, typer.Option(help="Which ones, separated by commas; all when not given.")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of each: as many initial weights, and orders of the data.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Show in seconds that it works, and measure nothing.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Write losses by samples and bytes to this file, as SVG.")] = None,
) -> None:
    """Digits on eight clients by each named recipe: accuracy beside one process at equal samples, and bytes."""
    known = known_recipes()
    found: list[RecipeRun] = []

    def kept() -> Iterator[Measurement]:
        names, length = known_names(recipes, known) if recipes else known, QUICK if quick else Length()
        for one in measure_recipes(names, range(1 if quick else seeds), length):
            found.append(one)
            yield one
        yield from means_of(found)

    report_each(kept())
    if figure is not None:
        draw(found, figure)


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
