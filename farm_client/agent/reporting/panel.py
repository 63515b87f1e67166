"""The live panel: one moment of the agent as text for a terminal of any width.

It is drawn each second for days, so it is one text whose columns are counted here: tables that measure themselves cost
several times as much.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from farm_client.agent.reporting.meters import GpuView, MachineView
from farm_client.agent.reporting.status import Connection, Status, WorkView
from protocol.assignments import Kind, Phase
from protocol.terminal_text import one_line
from protocol.wording import counted, sized

SHOWN_EVENTS: Final = 6
_SHOWN_GPUS: Final = 8
_LABEL_COLUMNS: Final = 10
_TEXT_COLUMNS: Final = 34
"""What stands right of a bar."""
_BAR_COLUMNS: Final = (8, 48)
_HIGH_SHARE: Final = 0.9
_HOT_CELSIUS: Final = 85.0
_COLOURS: Final[dict[Connection, str]] = {
    "starting": "yellow",
    "connecting": "yellow",
    "connected": "green",
    "away": "red",
    "stopped": "dim",
}
_DOING: Final = {
    Kind.TRAIN: "training",
    Kind.EVALUATE: "evaluating",
    Kind.EPOCH_END: "running on_epoch_end",
    Kind.MAP: "mapping",
}
_BEFORE_AND_AFTER: Final = {
    Phase.FETCHING: "fetching files",
    Phase.STARTING: "loading the code",
    Phase.UPLOADING: "sending the result",
}
_HINT: Final = "Ctrl-C: finish what runs and leave; twice: stop at once"


class StatusPanel:
    """Draws a status. ``most_sent`` and ``most_received`` are the bytes a second at which its network bars are full."""

    def __init__(
        self, status: Status, *, most_sent: float = 0.0, most_received: float = 0.0, hint: str = _HINT
    ) -> None:
        self._status = status
        self._most_sent = most_sent
        self._most_received = most_received
        self._hint = hint

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the panel's lines, cut to the width and height that there are."""
        width = options.max_width
        fixed = list(self._fixed_lines(width))
        room = (options.height or options.size.height) - len(fixed) - 3  # the hint, and the line of the cursor
        events = list(self._event_lines(max(1, min(SHOWN_EVENTS, room))))
        lines = [*fixed, *events, Text(self._hint, style="dim")]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        yield Text("\n", no_wrap=True, end="").join(lines)

    def _fixed_lines(self, width: int) -> Iterator[Text]:
        status = self._status
        bar = max(_BAR_COLUMNS[0], min(_BAR_COLUMNS[1], width - _LABEL_COLUMNS - _TEXT_COLUMNS))
        yield self._title()
        yield _labelled("does", Text(one_line(status.doing)))
        yield _labelled("sandbox", Text(one_line(status.sandbox) or "none chosen yet"))
        for number, work in enumerate(status.work):
            yield from _work_lines(work, bar, status.speeds.samples if number == 0 else 0.0)
        yield from _machine_lines(status.machine, bar)
        for label, speed, most, moved in (
            ("down", status.speeds.received_bytes, self._most_received, status.moved.received_bytes),
            ("up", status.speeds.sent_bytes, self._most_sent, status.moved.sent_bytes),
        ):
            share = speed / most if most else 0.0
            yield _labelled(label, _bar(share, bar), Text(f" {sized(speed)}/s", ""), Text(f"  {sized(moved)}", "dim"))
        packages = status.environments
        if packages.installs or packages.environments:
            there = counted(packages.environments, "environment")
            doing = "".join(f"; {one_line(one)}" for one in packages.installing)
            yield _labelled("packages", Text(f"{there}, {sized(packages.size_bytes)}{doing}"))
        credit = "" if status.credit is None else f", {status.credit.in_words()}"
        yield _labelled("done", Text(f"{counted(status.delivered, 'result')} counted{credit}"))

    def _title(self) -> Text:
        status = self._status
        title = Text.assemble(
            ("AI Farm  ", "bold"),
            (one_line(status.name), "bold cyan"),
            " at ",
            one_line(status.farm) or "no farm yet",
            "  ",
            (status.connection, _COLOURS[status.connection]),
        )
        if status.connected_at:
            title.append(f" {_lasted(status.updated_at - status.connected_at)}", "dim")
        return title

    def _event_lines(self, most: int) -> Iterator[Text]:
        for event in self._status.events[-most:]:
            clock = time.strftime("%H:%M:%S", time.localtime(event.at))
            yield Text.assemble((f"{clock}  ", "dim"), event.text)


def _work_lines(work: WorkView, bar: int, samples_per_second: float) -> Iterator[Text]:
    by = f" by {one_line(work.submitter)}" if work.submitter else ""
    doing = _BEFORE_AND_AFTER.get(work.phase) or _DOING[work.kind]
    yield _labelled("task", Text(one_line(work.name), "bold"), Text(f"{by}, round {work.round}: {doing}"))
    share = 1.0 if work.phase is Phase.UPLOADING else work.samples_done / max(1, work.samples)
    speed = f"  {samples_per_second:,.0f} samples/s" if samples_per_second else ""
    yield _labelled("progress", _bar(share, bar), Text(f" {share:4.0%} of {work.samples:,}{speed}"))


def _machine_lines(machine: MachineView, bar: int) -> Iterator[Text]:
    yield _labelled("CPU", _bar(machine.cpu, bar), Text(f" {machine.cpu:4.0%}"), _degrees(machine.cpu_celsius))
    yield _labelled("RAM", *_memory(machine.memory_used_bytes, machine.memory_bytes, bar))
    for gpu in machine.gpus[:_SHOWN_GPUS]:
        yield from _gpu_lines(gpu, bar)
    if len(machine.gpus) > _SHOWN_GPUS:
        yield _labelled("", Text(f"and {counted(len(machine.gpus) - _SHOWN_GPUS, 'GPU')} more", "dim"))


def _gpu_lines(gpu: GpuView, bar: int) -> Iterator[Text]:
    name = Text(f"  {one_line(gpu.name)}", "dim")
    yield _labelled(f"GPU {gpu.index}", _bar(gpu.busy, bar), Text(f" {gpu.busy:4.0%}"), _degrees(gpu.celsius), name)
    yield _labelled("  VRAM", *_memory(gpu.memory_used_bytes, gpu.memory_bytes, bar))


def _memory(used: int, total: int, bar: int) -> tuple[Text, Text]:
    share = used / max(1, total)
    colour = "yellow" if share >= _HIGH_SHARE else "cyan"
    return _bar(share, bar, colour=colour), Text(f" {sized(used)} of {sized(total)}")


def _degrees(celsius: float | None) -> Text:
    if celsius is None:
        return Text()
    return Text(f"  {celsius:.0f} °C", "red" if celsius >= _HOT_CELSIUS else "")


def _labelled(label: str, *parts: Text) -> Text:
    return Text.assemble((label.ljust(_LABEL_COLUMNS), "dim"), *parts)


def _bar(share: float, columns: int, *, colour: str = "cyan") -> Text:
    full = round(min(1.0, max(0.0, share)) * columns)
    return Text.assemble(("━" * full, colour), ("─" * (columns - full), "bright_black"))


def _lasted(seconds: float) -> str:
    minutes = int(max(0.0, seconds)) // 60
    hours, rest = divmod(minutes, 60)
    return f"for {hours} h {rest:02d} min" if hours else f"for {minutes} min"
