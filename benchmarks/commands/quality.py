"""Measurements of what training comes to: the order of the data, and the model beside a plain loop's."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from benchmarks.order import LAYOUTS, SUBJECTS, compare
from benchmarks.quality import EPOCHS, MODELS, MODES, measure
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
    clients: Annotated[str, typer.Option(help="Numbers of clients, one farm for each.")] = "1,2,8",
    seeds: Annotated[int, typer.Option(min=1, help="Starting weights and orders, for both sides.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="Length of each training.")] = EPOCHS,
) -> None:
    """Held-out losses of models that a farm trains, beside those of a plain loop at equal samples."""
    report_each(measure(known_names(models, MODELS), known_names(modes, MODES), whole_numbers(clients), seeds, epochs))
