"""The figure of ``benchmarks.bytes``: held-out loss against bytes on a logarithmic axis, a curve for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bytes import Bytes

INCHES: Final = (9.0, 5.5)
WHOLE_FROM: Final = 10.0
"""Factors from here on are shown without a decimal."""


def draw(found: Sequence[Bytes], path: Path) -> None:
    """Write the figure as SVG. A ring marks where a method reached the loss; white paper, as its text is black."""
    # Text stays text, small and in the reader's own font; and the same curves give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "aifarm"}):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        for one in found:
            _draw_curve(axes, one)
        axes.axhline(found[0].target_loss, color="black", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel("bytes on the wire, up and down, all clients")
        axes.set_ylabel("held-out loss, nats a byte")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(which="major", linewidth=0.4, alpha=0.5)
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def _draw_curve(axes: Axes, one: Bytes) -> None:
    label = one.method if one.factor is None else f"{one.method}: {_times(one.factor)}"
    (line,) = axes.plot(
        [point.total_bytes for point in one.curve], [point.loss for point in one.curve], linewidth=1.4, label=label
    )
    if one.reached:
        axes.plot([one.up_bytes + one.down_bytes], [one.loss], marker="o", fillstyle="none", color=line.get_color())


def _times(factor: float) -> str:
    return f"{factor:.0f}x" if factor >= WHOLE_FROM else f"{factor:.1f}x"
