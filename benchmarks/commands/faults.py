"""Measurements of what faults cost."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from benchmarks.churn import CLIENTS as CHURN_CLIENTS
from benchmarks.churn import measure as measure_churn
from benchmarks.comeback import measure as measure_comeback
from benchmarks.goodput import measure as measure_goodput
from benchmarks.recovery import Victim
from benchmarks.recovery import measure as measure_recovery
from benchmarks.report import report
from protocol.recipe import Mode

app = typer.Typer()


@app.command()
def goodput(
    mode: Annotated[list[Mode] | None, typer.Option(help="What clients return; both when not given.")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the window with kills.")] = 45.0,
) -> None:
    """The share of a farm's speed that is left with one kill every 15 s: a client, an executor, the server in turn."""
    report([partial(measure_goodput, each, clients, seconds) for each in mode or list(Mode)])


@app.command()
def churn(
    seconds: Annotated[float, typer.Option(min=5, help="How long clients come and go.")] = 300.0,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = CHURN_CLIENTS,
) -> None:
    """The server's memory after clients came and went for minutes, beside its value after a fifth of the time."""
    report([partial(measure_churn, seconds, clients)])


@app.command()
def recovery(
    kills: Annotated[int, typer.Option(min=1, help="Kills of each victim.")] = 20,
    victim: Annotated[list[Victim] | None, typer.Option(help="Who is killed; each when not given.")] = None,
) -> None:
    """Seconds from a SIGKILL to the next committed round."""
    report([partial(measure_recovery, each, kills) for each in victim or list(Victim)])


@app.command()
def comeback(
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 5000,
    open_tasks: Annotated[int, typer.Option(min=0, help="Tasks with an open round that clients hold.")] = 10,
    waiting_tasks: Annotated[int, typer.Option(min=0, help="Tasks that wait for more clients than may do them.")] = 10,
    kills: Annotated[int, typer.Option(min=1, help="Kills of the server.")] = 3,
) -> None:
    """Seconds from a SIGKILL of the server until a crowd of light clients is back, and its open rounds with it."""
    report([partial(measure_comeback, clients, open_tasks, waiting_tasks, kills)])
