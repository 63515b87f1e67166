"""Take the README's picture: a real farm trains the digits example, and one moment of `farm watch` becomes an SVG.

Run ``make picture`` after a change of the live view.
"""

from __future__ import annotations

import io
import re
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from farm_client.cli.demo import example_folder
from farm_client.cli.localfarm import local_farm
from farm_client.cli.output import Output
from farm_client.cli.submit import prepare_and_send
from farm_client.cli.submit_options import SubmitOptions
from farm_client.sdk.api import FarmApi
from farm_client.sdk.watching.live_picture import draw_scene
from farm_client.sdk.watching.scene import Scene, scenes

PICTURE: Final = Path(__file__).parent / "images" / "watch.svg"
VOLUNTEERS: Final = 3
MOMENT: Final = 0.6
"""How far the training is in the picture."""
COLUMNS: Final = 100


def moment() -> Scene:
    """Train the digits example on a local farm and return the scene nearest after ``MOMENT``."""
    options = SubmitOptions(file=example_folder("digits"), init_min_clients=VOLUNTEERS)
    with (
        tempfile.TemporaryDirectory(prefix="aifarm-picture-") as folder,
        local_farm(Path(folder), VOLUNTEERS) as farm,
        FarmApi(farm.address) as api,
    ):
        task = prepare_and_send(api, options, Output(as_json=True)).task
        for scene in scenes(api, task.task_id):
            if scene.detail.task.round >= MOMENT * scene.detail.task.rounds_total:
                break
    return scene


def main() -> None:
    """Write the picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(draw_scene(moment()))
    PICTURE.parent.mkdir(exist_ok=True)
    svg = console.export_svg(title="farm watch digits")
    # The fonts that rich names are fetched from the web; the reader's own monospaced font does as well.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
