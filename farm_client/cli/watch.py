"""Following a task as it trains: `farm watch`, and the same after `submit --watch`, `run` and `demo`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.markup import escape

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.ending import finish
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.sdk.api import FarmApi
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.watching.scene import Scene, scenes
from farm_client.sdk.watching.show import Show, showing
from protocol.rest import TaskView


def watch(invocation: Invocation, task: TaskArgument, retry_seconds: RetryOption = RETRY_SECONDS) -> None:
    """Watch a task live until it is over; the exit code tells how it ended."""
    with invocation.api(retry_seconds, from_start=True) as api:
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
    else:
        with showing(out.results, lambda text: out.say(escape(text))) as show:
            yield show


def _emit(scene: Scene, out: Output) -> None:
    for event in scene.fresh:
        out.emit(OutputKind.EVENT, event)
    out.emit(OutputKind.TASK, scene.detail.task)
