"""The figure of ``benchmarks.recipes``: held-out loss against samples and against bytes, a curve for each recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.recipes import RecipeRun

INCHES: Final = (10.0, 4.5)


def draw(found: Sequence[RecipeRun], path: Path) -> None:
    """Write the figure as SVG: losses and bytes on logarithmic axes. The dotted line is one process.

    Of a recipe that was trained from several seeds the first run is drawn.
    """
    first = {one.recipe: one for one in reversed(found)}
    # Text stays text, small and in the reader's own font; and the same curves give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "aifarm"}):
        figure = Figure(figsize=INCHES, layout="constrained")
        by_samples, by_bytes = figure.subplots(1, 2, sharey=True)
        colors = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]  # a listed colormap
        for number, one in enumerate(first[name] for name in dict.fromkeys(one.recipe for one in found)):
            look = {"color": colors[(2 * number) % 20 + (number >= 10)], "linewidth": 1.3, "label": one.recipe}
            losses = [point.loss for point in one.curve]
            by_samples.plot([point.samples for point in one.curve], losses, **look)
            by_bytes.plot([point.bytes / 1e6 for point in one.curve], losses, **look)
        for axes, label in ((by_samples, "samples trained on"), (by_bytes, "MB on the wire, up and down, all clients")):
            axes.axhline(found[0].plain_loss, color="black", linewidth=0.8, linestyle=":")
            axes.set_yscale("log")
            axes.set_xlabel(label)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(which="major", linewidth=0.4, alpha=0.5)
        by_bytes.set_xscale("log")
        by_samples.set_ylabel("held-out loss")
        by_bytes.legend(frameon=False, fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
