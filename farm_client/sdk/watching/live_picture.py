"""The live picture of a task: how far it is, how well it does, who works on it, what just happened."""

from __future__ import annotations

import math
import time

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from farm_client.sdk.outcome import is_over
from farm_client.sdk.watching.formatting import (
    format_clock,
    format_metrics,
    format_rate,
    format_seconds,
    format_value,
    sparkline,
)
from farm_client.sdk.watching.pictures import hardware, state_text
from farm_client.sdk.watching.scene import Scene
from farm_client.sdk.watching.tables import FittingTable
from protocol.rest import ClientView, TaskView
from protocol.wording import ClientNames

SHOWN_EVENTS = 6
SHOWN_CLIENTS = 10
CURVE_COLUMNS = 40
BUSY_BAR_COLUMNS = 8


def draw_scene(scene: Scene, now: float | None = None) -> RenderableType:
    """Draw one moment of a task. ``now`` is Unix time."""
    task = scene.detail.task
    parts: list[RenderableType] = [_numbers(scene, time.time() if now is None else now), _clients(scene)]
    if scene.recent:
        parts.append(_events(scene))
    title = Text.assemble(" ", (task.name, "bold"), "  ", state_text(task.state), f"  {task.task_id} ")
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim", padding=(1, 2))


def _numbers(scene: Scene, now: float) -> RenderableType:
    task = scene.detail.task
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=max(task.rounds_total, 1), completed=task.round, width=CURVE_COLUMNS),
        f"{task.round} of {task.rounds_total}",
        Text(_remaining(task, now), style="dim"),
    )
    grid.add_row("round", bar)
    grid.add_row("loss", _curve(scene.losses, task.loss))
    quality = {name: value for name, value in task.metrics.items() if name != "loss"}
    grid.add_row("held out", Text(format_metrics(quality) or "not evaluated yet", style="bold" if quality else "dim"))
    speed = f"{format_rate(task.samples_per_second)}, {task.samples_done:,} samples, epoch {task.epoch}"
    grid.add_row("speed", speed)
    reason = scene.absent or task.error or ("" if is_over(task) else task.why)
    if reason:
        grid.add_row("why", Text(reason, style="red" if scene.absent or task.error else ""))
    return grid


def _curve(losses: tuple[float, ...], loss: float | None) -> RenderableType:
    curve = sparkline([math.log(value) if value > 0 else math.nan for value in losses], CURVE_COLUMNS)
    return Text.assemble((curve.ljust(CURVE_COLUMNS), "cyan"), "  ", (format_value(loss), "bold"))


def _remaining(task: TaskView, now: float) -> str:
    if task.started_at is None:
        return ""
    took = (task.finished_at or now) - task.started_at
    if task.finished_at is not None or not task.round:
        return f"took {format_seconds(took)}" if task.finished_at else format_seconds(took)
    left = took / task.round * (task.rounds_total - task.round)
    return f"{format_seconds(took)}, about {format_seconds(left)} to go"


def _clients(scene: Scene) -> RenderableType:
    present = [client for client in scene.clients if client.state != "offline"]
    if not present:
        return Text("\nno client is online", style="yellow")
    names = ClientNames((client.client_id, client.name) for client in scene.clients)
    table = FittingTable("client", "does", "load", "speed", "has", spare=("has", "load"))
    for client in sorted(present, key=lambda client: (-client.assignments, client.name))[:SHOWN_CLIENTS]:
        speed = client.samples_per_second.get(scene.detail.task.task_id, 0.0)
        table.add_row(
            names.shown(client.client_id, client.name),
            _doing(client),
            _load_bar(client.load.cpu),
            format_rate(speed),
            Text(hardware(client.resources), style="dim"),
        )
    if len(present) > SHOWN_CLIENTS:
        table.add_row(Text(f"and {len(present) - SHOWN_CLIENTS} more", style="dim"), *[""] * 4)
    return Padding(table, (1, 0, 0, 0))


def _doing(client: ClientView) -> Text:
    if client.state != "online":
        return Text.assemble(state_text(client.state), (f" {client.reason}", "dim"))
    if client.assignments:
        return Text("training", style="cyan")
    return Text(client.reason or "free", style="dim")


def _load_bar(share: float) -> Text:
    full = round(share * BUSY_BAR_COLUMNS)
    return Text.assemble(("━" * full, "cyan"), ("━" * (BUSY_BAR_COLUMNS - full), "bright_black"))


def _events(scene: Scene) -> RenderableType:
    lines = [
        Text.assemble((f"{format_clock(event.at)} ", "dim"), event.message) for event in scene.recent[-SHOWN_EVENTS:]
    ]
    return Group(Text(), *lines)
