"""The researcher's own output, from every client: `farm logs`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import typer
from rich.text import Text

from farm_client.cli.arguments import RetryOption, TaskArgument
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import Output, OutputKind
from farm_client.sdk.api import FarmApi
from farm_client.sdk.feeds import follow, read_all
from farm_client.sdk.retrying import RETRY_SECONDS
from farm_client.sdk.watching.formatting import format_clock
from protocol.rest import LogView
from protocol.wording import ClientNames

SHOWN_PRINTS: Final = 200
"""The most lines that `farm run` shows at its end."""
_STREAM_STYLES = {"stderr": "red", "agent": "dim"}
_CLIENT_COLOURS = ("cyan", "green", "magenta", "yellow", "blue")


def logs(
    invocation: Invocation,
    task: TaskArgument,
    follow_on: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until the task is over.")
    ] = False,
    client: Annotated[str | None, typer.Option("--client", help="Only this client (its name or id).")] = None,
    retry_seconds: RetryOption = RETRY_SECONDS,
) -> None:
    """Show what the task's code printed on each client, tracebacks too."""
    with invocation.api(retry_seconds if follow_on else 0.0, from_start=follow_on) as api:
        task_id = invocation.task(api, task).task_id
        lines = follow(api, api.logs, task_id) if follow_on else read_all(api.logs, task_id)
        painter = LogPainter(None if invocation.out.as_json else names_on(api))
        for line in _only(lines, client):
            invocation.out.emit(OutputKind.LOG, line, lambda line=line: painter.draw(line))  # type: ignore[misc]


def show_prints(api: FarmApi, task_id: str, out: Output) -> None:
    """Show the newest lines that a task's code printed, before its farm and they are gone: envelopes with --json."""
    lines = (line for line in read_all(api.logs, task_id) if line.stream != "agent")
    newest: deque[LogView] = deque(maxlen=SHOWN_PRINTS)
    dropped = -SHOWN_PRINTS
    for line in lines:
        newest.append(line)
        dropped += 1
    if dropped > 0:
        out.say(f"[dim]the {dropped:,} lines before these are not shown[/]")
    painter = LogPainter()
    for line in newest:
        if out.as_json:
            out.emit(OutputKind.LOG, line)
        else:
            out.chatter.print(painter.draw(line))


def _only(lines: Iterable[LogView], client: str | None) -> Iterator[LogView]:
    return (line for line in lines if client is None or client in {line.client_name, line.client_id})


def names_on(api: FarmApi) -> ClientNames:
    """Return the names of all clients that a farm knows."""
    return ClientNames((client.client_id, client.name) for client in api.clients())


class LogPainter:
    """Draws log lines, each client in its own colour."""

    def __init__(self, names: ClientNames | None = None) -> None:
        self._names = names or ClientNames()
        self._colours: dict[str, str] = {}

    def draw(self, line: LogView) -> Text:
        """Return one line: the time, the client, the round, and the text."""
        colour = self._colours.setdefault(line.client_id, _CLIENT_COLOURS[len(self._colours) % len(_CLIENT_COLOURS)])
        return Text.assemble(
            (f"{format_clock(line.at)} ", "dim"),
            (f"{self._names.shown(line.client_id, line.client_name)} ", colour),
            (f"r{line.round} ", "dim"),
            (line.text, _STREAM_STYLES.get(line.stream, "")),
        )
