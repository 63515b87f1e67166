"""How tasks, rounds and clients look on a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from farm_client.sdk.checkpoints import best_round
from farm_client.sdk.outcome import is_over
from farm_client.sdk.watching.formatting import (
    NOTHING,
    format_age,
    format_metrics,
    format_rate,
    format_seconds,
    format_short_age,
    format_value,
)
from farm_client.sdk.watching.split_lines import split_lines
from farm_client.sdk.watching.tables import FittingTable
from protocol.aggregates import described
from protocol.recipe import Recipe, Requirements
from protocol.resources import LinkFigures, Resources
from protocol.rest import CheckpointView, ClientView, RoundView, ShardBook, TaskDetail, TaskView
from protocol.tasks import Split
from protocol.terminal_text import one_line
from protocol.wording import ClientNames, counted, sized

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


def state_text(state: str) -> Text:
    """Return a state's word in its colour."""
    return Text(state, style=_STATE_STYLES.get(state, ""))


def tasks_table(tasks: Sequence[TaskView], now: float) -> RenderableType:
    """Draw `farm ls`."""
    if not tasks:
        return Text("No tasks yet: `farm init` makes one to begin with, `farm submit` sends it.")
    topics = ("topics",) if any(task.topics for task in tasks) else ()
    headers = ("id", "name", *topics, "state", "round", "loss", "held out", "clients", "age", "why")
    table = FittingTable(*headers, spare=(*topics, "clients", "age", "loss", "held out"))
    for task in sorted(tasks, key=lambda task: -task.submitted_at):
        table.add_row(
            task.task_id,
            task.name,
            *([", ".join(task.topics) or NOTHING] if topics else []),
            state_text(task.state),
            f"{task.round}/{task.rounds_total}",
            format_value(task.loss),
            _headline(task),
            str(task.clients or NOTHING),
            format_short_age(task.submitted_at, now),
            task.why,
        )
    return table


def _headline(task: TaskView) -> str:
    """Return the metric to show where there is room for one; the loss, which every task has, only if alone."""
    names = sorted(task.metrics, key=lambda name: (name == "loss", name))
    return format_metrics({name: task.metrics[name] for name in names[:1]}) or NOTHING


def task_detail(detail: TaskDetail, now: float) -> RenderableType:
    """Draw `farm show`."""
    task = detail.task
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(detail, now):
        # Not as markup: mode and metrics are called as it pleases those who submit.
        facts.add_row(name, Text(value) if isinstance(value, str) else value)
    title = Text.assemble((task.name, "bold"), "  ", state_text(task.state), f"  {task.task_id}")
    parts: list[RenderableType] = [title, Padding(facts, (0, 0, 1, 2))]
    if detail.rounds:
        parts.append(rounds_table(detail.rounds))
    return Group(*parts)


def _facts(detail: TaskDetail, now: float) -> list[tuple[str, RenderableType]]:
    task, spec = detail.task, detail.spec
    took = (task.finished_at or now) - (task.started_at or task.submitted_at)
    facts: list[tuple[str, RenderableType]] = [
        ("why", Text(task.why)),
        ("submitter", Text(f"{task.submitter}, {format_age(task.submitted_at, now)}, priority {task.priority}")),
        *([("topics", Text(", ".join(task.topics)))] if task.topics else []),
        ("recipe", _recipe_line(spec.recipe)),
        *([("privacy", privacy)] if (privacy := _privacy_line(task, spec.recipe)) else []),
        *([("needs", Text(needs))] if (needs := _needs_line(spec.requirements)) else []),
        *([("packages", f"environment {spec.environment.digest[:12]}")] if spec.environment else []),
        (
            "data",
            f"{counted(spec.dataset.samples(Split.TRAIN), 'sample')} to train on, "
            f"{spec.dataset.samples(Split.HOLDOUT):,} held out, {counted(len(spec.dataset.shards), 'shard')}",
        ),
        *([("split", Text("\n".join(split_lines(spec))))] if spec.dataset.parts else []),
        (
            "progress",
            f"round {task.round} of {task.rounds_total}, epoch {task.epoch}, {counted(task.samples_done, 'sample')}",
        ),
        (
            "speed",
            f"{format_rate(task.samples_per_second)}, {counted(task.clients, 'client')} at work, "
            f"{format_seconds(took)}",
        ),
        ("train loss", format_value(task.loss)),
        ("held out", format_metrics(task.metrics) or NOTHING),
    ]
    if detail.failed_steps:
        lines = "\n".join(one_line(step.line) for step in detail.failed_steps)
        facts.append(("failed at", Text(f"{lines}\n`farm pull {task.task_id} --failed` fetches state and batch")))
    if spec.config:
        facts.append(("config", Text("  ".join(f"{key}={value}" for key, value in spec.config.items()))))
    facts += [("note", Text(note, style="yellow")) for note in spec.notes]
    if task.retries:
        facts.append(("retries", f"{task.retries} of {spec.recipe.max_retries}"))
    if task.error:
        facts.append(("error" if is_over(task) else "last error", Text(task.error, style="red")))
    return facts


def _recipe_line(recipe: Recipe) -> str:
    said = f"{recipe.mode}, {counted(recipe.round_samples, 'sample')} a round, {recipe.batch_samples} a batch"
    return f"{said}, {one}" if (one := described(recipe)) else said


def _privacy_line(task: TaskView, recipe: Recipe) -> str:
    """Return what the task's versions have cost of privacy; empty where it is not private."""
    if recipe.dp_clip is None:
        return ""
    bound = f" of {recipe.dp_epsilon:g}" if recipe.dp_epsilon is not None else ""
    spent = "unknown" if task.epsilon is None else f"{task.epsilon:.4g}"
    return (
        f"epsilon {spent}{bound} at delta {recipe.dp_delta:g}; clip {recipe.dp_clip:g}, "
        f"noise multiplier {recipe.dp_noise_multiplier:g}"
    )


def _needs_line(needs: Requirements) -> str:
    """Return what a client must have; empty where any will do."""
    said = (
        f"{counted(needs.cpu_cores, 'core')}" if needs.cpu_cores else "",
        f"{sized(needs.ram_bytes)} of memory" if needs.ram_bytes else "",
        "a GPU" if needs.gpu else "",
        f"{sized(needs.gpu_memory_bytes)} of GPU memory" if needs.gpu_memory_bytes else "",
        f"tagged {', '.join(needs.tags)}" if needs.tags else "",
        f"called {' or '.join(needs.clients)}" if needs.clients else "",
        f"with {', '.join(needs.modules)}" if needs.modules else "",
        f"a sandbox that holds: {needs.sandbox} or above" if needs.sandbox else "",
    )
    return ", ".join(filter(None, said))


def rounds_table(rounds: Sequence[RoundView], limit: int = 10) -> RenderableType:
    """Draw the newest rounds, newest first, with what was measured in training."""
    shown = rounds[:limit]
    measured = sorted({name for view in shown for name in view.metrics} - {"loss"})
    headers = [f"train {name}" for name in measured]
    table = FittingTable(
        *("round", "state", "epoch", "samples", "clients", "took", "train loss"),
        *headers,
        spare=("epoch", "clients", *reversed(headers[1:]), "samples"),
    )
    for view in shown:
        table.add_row(
            str(view.number),
            view.state,
            str(view.epoch),
            f"{view.samples:,}",
            str(view.clients),
            NOTHING if view.seconds is None else format_seconds(view.seconds),
            format_value(view.loss),
            *(format_value(view.metrics.get(name)) for name in measured),
        )
    return table


def shards_table(books: Sequence[ShardBook]) -> RenderableType:
    """Draw the books of `farm show --shards`: one row an epoch, and each shard whose account is not even."""
    table = FittingTable("epoch", "shards", "samples", "counted", "repeated", "balance")
    by_epoch: dict[int, list[ShardBook]] = defaultdict(list)
    for book in books:
        by_epoch[book.epoch].append(book)
    for epoch, shards in sorted(by_epoch.items()):
        samples, done = sum(b.samples for b in shards), sum(b.counted_samples for b in shards)
        repeated = sum(b.repeated_samples for b in shards)
        if repeated:
            balance = Text(f"{repeated} counted twice", style="bold red")
        elif done == samples:
            balance = Text("each sample once", style="green")
        else:
            balance = Text(f"{samples - done} to go", style="yellow")
        table.add_row(str(epoch), str(len(shards)), f"{samples:,}", f"{done:,}", f"{repeated:,}", balance)
    return table if books else Text("No sample has been counted yet.")


def checkpoints_table(checkpoints: Sequence[CheckpointView], keep_best: str | None, now: float) -> RenderableType:
    """Draw `farm checkpoints`; the mark says which one is the newest, and which is best by the recipe's rule."""
    if not checkpoints:
        return Text("No checkpoint yet: the first comes with the first committed round.")
    best = best_round(checkpoints, keep_best)
    table = FittingTable("round", "epoch", "size", "age", "", "metrics", spare=("epoch",))
    for checkpoint in checkpoints:
        marks = ("newest" if checkpoint.newest else "", "best" if checkpoint.round == best else "")
        table.add_row(
            str(checkpoint.round),
            str(checkpoint.epoch),
            sized(checkpoint.size_bytes),
            format_short_age(checkpoint.created_at, now),
            Text(", ".join(filter(None, marks)), style="bold green"),
            format_metrics(checkpoint.metrics) or NOTHING,
        )
    return table


def clients_table(clients: Sequence[ClientView], working: Mapping[str, str], now: float) -> RenderableType:
    """Draw volunteers: what they have, what they do, how well.

    ``working`` are the names of the tasks that are not over, by id; the speed is that of the one they do fastest.
    """
    names = ClientNames((client.client_id, client.name) for client in clients)
    headers = ("client", "state", "has", "sandbox", "cpu", "link", "holds", "done", "failed", "speed", "note")
    table = FittingTable(*headers, spare=("link", "cpu", "holds", "sandbox", "speed", "has"))
    for client in clients:
        table.add_row(
            names.shown(client.client_id, client.name),
            state_text(client.state),
            hardware(client.resources),
            client.sandbox.label if client.sandbox else NOTHING,
            f"{client.load.cpu:.0%}",
            _link(client.link),
            str(client.assignments or NOTHING),
            str(client.delivered),
            Text(str(client.failed), style="red" if client.failed else ""),
            _speed(client, working),
            _note(client, now),
        )
    return table


def _speed(client: ClientView, working: Mapping[str, str]) -> str:
    """Return a speed with the task that it is of: samples of another task are other samples."""
    of = {task_id: speed for task_id, speed in client.samples_per_second.items() if task_id in working and speed}
    if not of:
        return NOTHING
    fastest = max(of, key=of.__getitem__)
    return f"{format_rate(of[fastest])} ({working[fastest]})"


def _link(figures: LinkFigures) -> str:
    """Return a link's round trip, and its speeds from and to the farm, as far as they were measured."""
    trip, down, up = figures.round_trip_seconds, figures.download_bytes_per_second, figures.upload_bytes_per_second
    told = [f"{1000 * trip:.0f} ms" if trip else "", f"{sized(int(down))}/s down" if down else ""]
    return ", ".join(filter(None, (*told, f"{sized(int(up))}/s up" if up else ""))) or NOTHING


def _note(client: ClientView, now: float) -> Text:
    breaker = "" if client.breaker == "closed" else f"breaker {client.breaker}"
    seen = f"seen {format_short_age(client.last_seen, now)} ago" if client.state == "offline" else ""
    reason = "" if breaker and client.reason.startswith(breaker) else breaker
    return Text("; ".join(filter(None, (reason, client.reason, seen))), style="yellow" if breaker else "")


def hardware(resources: Resources) -> str:
    """Return what a machine has, and the class of what computes: ``4 cores, 15.5 GiB, NVIDIA H100, cuda``."""
    gpus = ", ".join(gpu.name for gpu in resources.gpus)
    cores = counted(resources.cpu_cores, "core")
    told = (cores, sized(resources.ram_bytes), gpus, resources.device_class)
    return ", ".join(part for part in told if part)
