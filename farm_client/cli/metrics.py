"""Measured values: `farm metrics`, as a table, as plots on the terminal, or as JSON lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import typer
from rich.console import RenderableType

from farm_client.cli.arguments import TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.sdk.feeds import read_all
from farm_client.sdk.watching.formatting import format_value, sparkline
from farm_client.sdk.watching.tables import FittingTable
from protocol.rest import MetricView

SPARK_COLUMNS: Final = 24

Series = Mapping[str, Mapping[str, Sequence[MetricView]]]
"""Values by metric name, then by source."""


def metrics(
    invocation: Invocation,
    task: TaskArgument,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the values over the rounds.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Only the metric of this name.")] = None,
) -> None:
    """Show a task's loss and other metrics; with --json, one line a value."""
    with invocation.api() as api:
        task_id = invocation.task(api, task).task_id
        values = [value for value in read_all(api.metrics, task_id) if name in {None, value.name}]
    if invocation.out.as_json:
        for value in values:
            invocation.out.emit(OutputKind.METRIC, value)
    elif not values:
        invocation.out.say("No metric yet: the first comes with the first committed round.")
    else:
        invocation.out.draw(_plots(values, invocation.out) if plot else draw_table(_by_name(values)))


def _plots(values: Sequence[MetricView], out: Output) -> RenderableType:
    # The plotting package is the largest that any verb loads: as much as all the others together.
    from farm_client.cli.plots import draw_plots  # noqa: PLC0415

    return draw_plots(_by_name(values), out.columns)


def _by_name(values: Sequence[MetricView]) -> Series:
    series: dict[str, dict[str, list[MetricView]]] = defaultdict(lambda: defaultdict(list))
    for value in values:
        series[value.name][value.source].append(value)
    return series


def draw_table(series: Series) -> RenderableType:
    """Draw one row a metric and source: first, best and last value, and the curve in little."""
    headers = ("metric", "source", "curve", "values", "first", "lowest", "highest", "last")
    table = FittingTable(*headers, spare=("values", "first", "lowest", "highest"))
    for name, by_source in sorted(series.items()):
        for source, views in sorted(by_source.items()):
            numbers = [view.value for view in views]
            shown = (numbers[0], min(numbers), max(numbers), numbers[-1])
            curve = sparkline(numbers, SPARK_COLUMNS)
            table.add_row(name, source, curve, str(len(numbers)), *(format_value(number) for number in shown))
    return table
