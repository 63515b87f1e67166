"""Volunteers: `farm clients` lists and removes them; why a task gets which of them: `farm explain`."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from farm_client.cli.arguments import TaskArgument
from farm_client.cli.exit_codes import BadUsage
from farm_client.cli.invocation import Invocation
from farm_client.cli.output import OutputKind
from farm_client.sdk.outcome import is_over
from farm_client.sdk.references import find_client
from farm_client.sdk.watching.formatting import NOTHING
from farm_client.sdk.watching.pictures import clients_table
from farm_client.sdk.watching.tables import FittingTable
from protocol.rest import ClientScore, Explanation
from protocol.wording import ClientNames


class ClientsAction(StrEnum):
    """What `farm clients` may do besides listing."""

    RM = "rm"


def clients(
    invocation: Invocation,
    action: Annotated[
        ClientsAction | None, typer.Argument(metavar="[rm]", help="Remove a client instead of listing all.")
    ] = None,
    client: Annotated[
        str | None,
        typer.Argument(metavar="[CLIENT]", help="Which one: its id, a unique beginning of it, or the machine's name."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With `rm`: close its connection first, if it has one.")
    ] = False,
) -> None:
    """List the volunteer machines, what they have and how they do.

    `farm clients rm CLIENT` removes one; if it joins again, it is a newcomer.
    """
    if action is None:
        if force:
            raise BadUsage("--force is for `farm clients rm CLIENT`")
        _list(invocation)
    elif client is None:
        raise BadUsage("`farm clients rm` removes one client: say which, by its name or its id")
    else:
        _remove(invocation, client, force)


def _remove(invocation: Invocation, reference: str, force: bool) -> None:
    with invocation.api() as api:
        meant = find_client(api.clients(), reference)
        removed = api.remove_client(meant.client_id, force=force)
    invocation.out.emit(OutputKind.CLIENT_REMOVED, removed)
    invocation.out.say(f"{escape(meant.name)} ({removed.client_id}) is removed")


def _list(invocation: Invocation) -> None:
    with invocation.api() as api:
        known = api.clients()
        working = (
            {}
            if invocation.out.as_json
            else {task.task_id: task.name for task in api.active_tasks() if not is_over(task)}
        )
    nobody = Text("No client has joined yet: run the `farm-client join …` line that `farm-server up` printed.")
    invocation.out.emit(
        OutputKind.CLIENTS, known, lambda: clients_table(known, working, time.time()) if known else nobody
    )


def explain(invocation: Invocation, task: TaskArgument) -> None:
    """Show each client's score for a task, term by term, and why others were filtered out."""
    with invocation.api() as api:
        explanation = api.explain(invocation.task(api, task).task_id)
    invocation.out.emit(OutputKind.EXPLANATION, explanation, lambda: _draw(explanation))


def _draw(explanation: Explanation) -> RenderableType:
    names = ClientNames((client.client_id, client.name) for client in explanation.clients)
    parts: list[RenderableType] = [Text(explanation.why, style="bold")]
    eligible = [client for client in explanation.clients if client.eligible]
    if eligible:
        parts.append(_scores(eligible, names))
    filtered = [client for client in explanation.clients if not client.eligible]
    if filtered:
        table = FittingTable("filtered out", "reason")
        for client in filtered:
            table.add_row(names.shown(client.client_id, client.name), client.reason)
        parts.append(table)
    return Group(*parts)


def _scores(eligible: list[ClientScore], names: ClientNames) -> RenderableType:
    """Draw the terms' values, from 0 to 1, under the weights that they are multiplied with."""
    weights = {term.name: term.weight for client in eligible for term in client.terms}
    headers = {name: name.replace("_", " ") for name in weights}
    lightest_first = sorted(weights, key=weights.__getitem__)
    table = FittingTable("client", "score", *headers.values(), spare=[headers[name] for name in lightest_first])
    table.add_row(Text("weight", style="dim"), "", *(Text(f"x {weight:g}", style="dim") for weight in weights.values()))
    for client in eligible:
        values = {term.name: f"{term.value:.2f}" for term in client.terms}
        cells = [values.get(name, NOTHING) for name in weights]
        table.add_row(names.shown(client.client_id, client.name), f"{client.score:.3f}", *cells)
    return table
