"""How tasks, rounds and clients look on a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from farm_client.cli.formatting import (
    NOTHING,
    format_age,
    format_bytes,
    format_metrics,
    format_rate,
    format_seconds,
    format_value,
)
from protocol.resources import Resources
from protocol.rest import ClientView, RoundView, ShardBook, TaskDetail, TaskView
from protocol.tasks import Split

_STATE_STYLES = {
    "pending": "yellow",
    "assigned": "cyan",
    "running": "bold cyan",
    "paused": "magenta",
    "completed": "bold green",
    "failed": "bold red",
    "cancelled": "dim",
    "online": "green",
    "draining": "yellow",
    "offline": "dim",
}


def plain_table(*headers: str) -> Table:
    """Return an empty table in the look that all verbs share; only the last column's text may wrap."""
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for header in headers[:-1]:
        table.add_column(header, no_wrap=True)
    table.add_column(headers[-1], overflow="fold", min_width=12)
    return table


def state_text(state: str) -> Text:
    """Return a state's word in its colour."""
    return Text(state, style=_STATE_STYLES.get(state, ""))


def tasks_table(tasks: Sequence[TaskView]) -> RenderableType:
    """Draw `farm ls`."""
    if not tasks:
        return Text("No tasks yet: `farm init` makes one to begin with, `farm submit` sends it.")
    table = plain_table("id", "name", "state", "round", "loss", "metrics", "clients", "submitted", "why")
    for task in sorted(tasks, key=lambda task: -task.submitted_at):
        table.add_row(
            task.task_id,
            escape(task.name),
            state_text(task.state),
            f"{task.round}/{task.rounds_total}",
            format_value(task.loss),
            format_metrics(task.metrics) or NOTHING,
            str(task.clients),
            format_age(task.submitted_at),
            escape(task.why),
        )
    return table


def task_detail(detail: TaskDetail, now: float) -> RenderableType:
    """Draw `farm show`."""
    task, spec = detail.task, detail.spec
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(detail, now):
        facts.add_row(name, value)
    title = Text.assemble((task.name, "bold"), "  ", state_text(task.state), f"  {task.task_id}")
    parts: list[RenderableType] = [title, Padding(facts, (0, 0, 1, 2))]
    if spec.config:
        parts.append(Text("config  " + "  ".join(f"{key}={value}" for key, value in spec.config.items()), style="dim"))
    if detail.rounds:
        parts.append(rounds_table(detail.rounds))
    return Group(*parts)


def _facts(detail: TaskDetail, now: float) -> list[tuple[str, RenderableType]]:
    task, spec = detail.task, detail.spec
    took = (task.finished_at or now) - (task.started_at or task.submitted_at)
    facts: list[tuple[str, RenderableType]] = [
        ("why", Text(task.why)),
        ("submitter", Text(f"{task.submitter}, {format_age(task.submitted_at, now)}, priority {task.priority}")),
        ("recipe", f"{task.mode}, {spec.recipe.round_samples} samples a round, {spec.recipe.batch_samples} a batch"),
        (
            "data",
            f"{spec.dataset.samples(Split.TRAIN):,} samples to train on, {spec.dataset.samples(Split.HOLDOUT):,} held "
            f"out, {len(spec.dataset.shards)} shards",
        ),
        ("progress", f"round {task.round} of {task.rounds_total}, epoch {task.epoch}, {task.samples_done:,} samples"),
        ("speed", f"{format_rate(task.samples_per_second)}, {task.clients} clients, {format_seconds(took)}"),
        ("result", format_metrics(task.metrics | ({} if task.loss is None else {"loss": task.loss})) or NOTHING),
    ]
    if task.error:
        facts.append(("error", Text(task.error, style="red")))
    return facts


def rounds_table(rounds: Sequence[RoundView], limit: int = 10) -> Table:
    """Draw the newest rounds, newest first."""
    table = plain_table("round", "state", "epoch", "samples", "clients", "took", "loss", "metrics")
    for view in rounds[:limit]:
        table.add_row(
            str(view.number),
            view.state,
            str(view.epoch),
            f"{view.samples:,}",
            str(view.clients),
            NOTHING if view.seconds is None else format_seconds(view.seconds),
            format_value(view.loss),
            format_metrics(view.metrics) or NOTHING,
        )
    return table


def shards_table(books: Sequence[ShardBook]) -> RenderableType:
    """Draw the books of `farm show --shards`: one row an epoch, and each shard whose account is not even."""
    table = plain_table("epoch", "shards", "samples", "counted", "repeated", "balance")
    by_epoch: dict[int, list[ShardBook]] = defaultdict(list)
    for book in books:
        by_epoch[book.epoch].append(book)
    for epoch, shards in sorted(by_epoch.items()):
        samples, counted = sum(b.samples for b in shards), sum(b.counted_samples for b in shards)
        repeated = sum(b.repeated_samples for b in shards)
        if repeated:
            balance = Text(f"{repeated} counted twice", style="bold red")
        elif counted == samples:
            balance = Text("each sample once", style="green")
        else:
            balance = Text(f"{samples - counted} to go", style="yellow")
        table.add_row(str(epoch), str(len(shards)), f"{samples:,}", f"{counted:,}", f"{repeated:,}", balance)
    return table if books else Text("No sample has been counted yet.")


def clients_table(clients: Sequence[ClientView], now: float) -> Table:
    """Draw volunteers: what they have, what they do, how well; the speed is that of their fastest task."""
    table = plain_table("client", "state", "has", "cpu", "holds", "done", "failed", "speed", "note")
    for client in clients:
        seen = f"seen {format_age(client.last_seen, now)}" if client.state == "offline" else ""
        table.add_row(
            escape(client.name or client.client_id),
            state_text(client.state),
            hardware(client.resources),
            f"{client.load.cpu:.0%}",
            str(client.assignments),
            str(client.delivered),
            str(client.failed),
            format_rate(max(client.samples_per_second.values(), default=0.0)),
            escape("; ".join(part for part in (client.reason, seen) if part)),
        )
    return table


def hardware(resources: Resources) -> str:
    """Return what a machine has: ``4 cores, 15.5 GiB, NVIDIA H100``."""
    gpus = ", ".join(gpu.name for gpu in resources.gpus)
    cores = f"{resources.cpu_cores} core{'' if resources.cpu_cores == 1 else 's'}"
    return ", ".join(part for part in (cores, format_bytes(resources.ram_bytes), gpus) if part)
