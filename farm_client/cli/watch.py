"""Following a task as it trains: `farm watch`, and the same after `submit --watch`, `run` and `demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.live import Live

from farm_client.cli.arguments import PatienceOption, TaskArgument
from farm_client.cli.ending import finish
from farm_client.cli.invocation import Invocation
from farm_client.cli.live_picture import draw_scene
from farm_client.cli.output import Output, OutputKind
from farm_client.cli.plain_progress import ProgressLines
from farm_client.cli.scene import Scene, scenes
from farm_client.sdk.api import FarmApi
from farm_client.sdk.patience import PATIENCE_SECONDS
from protocol.rest import TaskView

Show = Callable[[Scene], None]


def watch(invocation: Invocation, task: TaskArgument, patience: PatienceOption = PATIENCE_SECONDS) -> None:
    """Watch a task live until it is over; the exit code tells how it ended."""
    with invocation.api(patience, from_start=True) as api:
        last = watch_task(api, invocation.task(api, task).task_id, invocation.out)
        finish(api, last, invocation.out)


def watch_task(api: FarmApi, task_id: str, out: Output, guard: Callable[[], None] = lambda: None) -> TaskView:
    """Show the task until it is over: a live picture on a terminal, else lines. Return its last view.

    ``guard`` is called between two looks; what it raises ends the watch.
    """
    with _show(out) as show:
        for scene in scenes(api, task_id):
            show(scene)
            guard()
    return scene.detail.task


@contextmanager
def _show(out: Output) -> Iterator[Show]:
    if out.as_json:
        yield lambda scene: _emit(scene, out)
    elif out.live:
        with Live(console=out.results, auto_refresh=False, vertical_overflow="crop") as live:
            yield lambda scene: live.update(draw_scene(scene), refresh=True)
    else:
        lines = ProgressLines()
        yield lambda scene: lines.show(scene, out)


def _emit(scene: Scene, out: Output) -> None:
    for event in scene.fresh:
        out.emit(OutputKind.EVENT, event)
    out.emit(OutputKind.TASK, scene.detail.task)
