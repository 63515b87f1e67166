"""A new project from a template: `farm init`."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from protocol.errors import Conflict

TEMPLATES: Final = ("train.py", "task.toml", "README.md")
DATA: Final = "data.npz"
POINTS: Final = 2000
TURNS: Final = 1.5
NOISE: Final = 0.03


def init(
    invocation: Invocation,
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to put it.")] = Path("my-task"),
) -> None:
    """Make a folder with a small task that runs: code, settings, data, and a README with the commands."""
    files = [directory / name for name in (*TEMPLATES, DATA)]
    if existing := [file for file in files if file.exists()]:
        raise Conflict(f"{existing[0]} exists already: give another folder, as in `farm init other-task`")
    directory.mkdir(parents=True, exist_ok=True)
    for name in TEMPLATES:
        with resources.as_file(resources.files("farm_client") / "templates" / name) as template:
            shutil.copyfile(template, directory / name)
    points, spirals = make_spirals(POINTS)
    np.savez_compressed(directory / DATA, point=points, spiral=spirals)
    invocation.out.emit(OutputKind.INIT, {"directory": str(directory), "files": [str(file) for file in files]})
    shown = escape(str(directory))
    invocation.out.say(f"{shown} is ready: {', '.join(file.name for file in files)}")
    invocation.out.say(f"  farm run {shown} --local 2      train it on this machine")
    invocation.out.say(f"  farm submit {shown} --watch     train it on a farm")


def make_spirals(points: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return places ([points, 2] float32, within about -1 to 1) and which spiral each lies on ([points] int64)."""
    rng = np.random.default_rng(seed)
    spiral = rng.integers(0, 2, points)
    radius = np.sqrt(rng.uniform(0.02, 1.0, points))
    angle = radius * TURNS * 2 * np.pi + spiral * np.pi
    place = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return (place + rng.normal(0, NOISE, place.shape)).astype(np.float32), spiral
