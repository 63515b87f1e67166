"""Metrics as plots on the terminal: `farm metrics --plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import plotext
from rich.console import Group, RenderableType
from rich.text import Text

from protocol.rest import MetricView

PLOT_ROWS: Final = 14


def draw_plots(series: Mapping[str, Mapping[str, Sequence[MetricView]]], columns: int) -> RenderableType:
    """Draw one plot a metric, ``columns`` wide, with a curve for each source, over the rounds."""
    return Group(*(_plot(name, by_source, columns) for name, by_source in sorted(series.items())))


def _plot(name: str, by_source: Mapping[str, Sequence[MetricView]], columns: int) -> Text:
    figure = plotext.figure
    figure.clear()
    figure.plot_size(columns, PLOT_ROWS)
    figure.theme("simple")
    figure.title(f"{name} by round")
    for source, views in sorted(by_source.items()):
        rounds, values = [view.round for view in views], [view.value for view in views]
        figure.draw(figure.signal(rounds, values, marker="braille").lines().label(source))
    return Text.from_ansi(figure.build().string())
