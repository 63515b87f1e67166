"""`farm leaderboard`: whose work counts most."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.text import Text

from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.watching.formatting import NOTHING
from farm_client.sdk.watching.tables import FittingTable
from protocol.rest_credit import LeaderboardView, LeaderView
from protocol.wording import ClientNames, counted, flops_text

_TOP: Final = 20
_MOST: Final = 1000
_DAYS: Final = {"d": 1, "w": 7}


class By(StrEnum):
    """Whose work may be added up."""

    CLIENT = "client"
    TEAM = "team"
    TASK = "task"


def leaderboard(
    invocation: Invocation,
    by: Annotated[By, typer.Option("--by", help="Whose work is added up.")] = By.CLIENT,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="7d", help="Only of so many days (d) or weeks (w), and today (UTC)."),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Only for one task.")] = None,
    top: Annotated[int, typer.Option("--top", "-n", metavar="N", min=1, max=_MOST, help="So many.")] = _TOP,
) -> None:
    """Show whose work counts most: samples that committed rounds contain, and measured FLOPs.

    With --task also for a task that was removed, by its whole id.
    """
    days = None if since is None else days_of(since)
    with invocation.api() as api:
        task_id = None
        if task is not None:
            known = {one.key for one in api.leaderboard(By.TASK, limit=_MOST).leaders}
            task_id = task if task in known else invocation.task(api, task).task_id
        board = api.leaderboard(by, since_days=days, task_id=task_id, limit=top)
    invocation.out.emit(OutputKind.LEADERBOARD, board, lambda: _draw(board))
    if len(board.leaders) < board.count:
        invocation.out.say(f"{len(board.leaders)} of {board.count} are shown: `--top N` shows so many")


def days_of(text: str) -> int:
    """Return how many days ``7d`` or ``2w`` are. Raises: BadUsage."""
    found = re.fullmatch(r"(\d{1,4})([dw])", text.strip())
    if found is None:
        raise BadUsage(f"--since {text}: give days or weeks, such as 7d or 2w")
    return int(found[1]) * _DAYS[found[2]]


def _draw(board: LeaderboardView) -> RenderableType:
    if not board.leaders:
        return Text("No work counts yet: it does with the first committed round.")
    names = ClientNames((one.key, one.name) for one in board.leaders)
    table = FittingTable("#", board.by, "FLOPs", "samples", "parts", "share", "last", spare=("last", "parts"))
    for one in board.leaders:
        table.add_row(
            str(one.rank),
            _name(board, one, names),
            _flops(one),
            f"{one.samples:,}",
            f"{one.assignments:,}",
            f"{one.share:.1%}",
            one.last_day,
        )
    table.add_row(
        "",
        Text(f"all {counted(board.count, board.by)}", style="dim"),
        flops_text(board.flops),
        f"{board.samples:,}",
        f"{board.assignments:,}",
        "",
        "",
    )
    return table


def _name(board: LeaderboardView, one: LeaderView, names: ClientNames) -> str:
    if board.by == By.TEAM:
        return one.key or "(no team)"
    return names.shown(one.key, one.name) if board.by == By.CLIENT else one.name or one.key


def _flops(one: LeaderView) -> str:
    """Return the FLOPs, and of what part of the samples they are if not of all."""
    if not one.measured_samples:
        return NOTHING
    part = one.measured_samples / one.samples
    return flops_text(one.flops) if part >= 0.995 else f"{flops_text(one.flops)} (of {part:.0%})"
