"""`farm-client service`: the agent as a service of its owner's login."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from typer.core import TyperGroup

from farm_client.agent.blotting import blot_out
from farm_client.agent.cli_parts import HomeOption, JsonOption, print_envelope
from farm_client.agent.connection.farm_choice import choose_farm, remember_farm
from farm_client.agent.errors import BadSettings, HomeInUse
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.service.files import ServicePlan
from farm_client.agent.service.manager import service_of
from farm_client.agent.settings import load_settings
from protocol.terminal_text import plain_text

_NOT_FOR_SERVICES: Final = ("url", "home", "as_json", "new_identity")
"""What `join` takes, and what a service has from elsewhere or must not repeat at each start."""

service_app = typer.Typer(no_args_is_help=True)


@service_app.callback()
def options() -> None:
    """Start the agent whenever you log in, with the lowest priority, and again if it ends by a failure."""


@service_app.command()
def install(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS", help="As of `join`.", show_default="FARM_JOIN_URL, or the farm of the last join"
        ),
    ] = None,
    join_options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of `join`, behind two dashes.")
    ] = None,
    *,
    home: HomeOption = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token, for an address without one.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the service's file, and change nothing.")] = False,
) -> None:
    """Install the service and start it. The farm and its token go into the home, in a file of mode 600."""
    extra = tuple(join_options or ())
    if url is not None and url.startswith("-"):  # two dashes and no address before them
        extra, url = (url, *extra), None
    blot_out((url,) if url else (), (), os.environ)
    _check_join_options(context, extra)
    settings = load_settings(home=home, token_file=token_file)
    where = HomeFolder(settings.home.absolute())
    address = choose_farm(url, settings.token_file, where.farm_file)
    # -P: a folder where it is started must not take the place of the program
    program = (sys.executable, "-P", "-m", "farm_client")
    plan = ServicePlan((*program, "join", "--home", str(where.root), *extra), where.root)
    service = service_of()
    if dry_run:
        typer.echo(f"{service.path}:", err=True)
        content = service.render(plan)
        typer.echo(content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"))
        return
    if where.in_use() and not service.is_running():
        raise HomeInUse(f"an agent already runs in {where.root} that is no service; stop it first")
    service.check()
    where.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    remember_farm(where.farm_file, address)
    service.install(plan)
    typer.echo(plain_text(f"the agent runs as a service of {service.system}, for {address.shown}. {service.advice}."))


@service_app.command()
def uninstall() -> None:
    """Stop the service, which finishes its work, and remove it; the home stays."""
    service = service_of()
    was_there = service.uninstall()
    typer.echo("the service is removed; the agent's home is as it was" if was_there else "there is no service")


@service_app.command()
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say whether the service is installed and runs; exit code 1 if it does not run."""
    service = service_of()
    where = HomeFolder(load_settings(home=home).home)
    running, agent = service.is_running(), where.in_use()
    if as_json:
        found = {"system": service.system, "path": str(service.path), "installed": service.is_installed}
        print_envelope("client_service", {**found, "running": running, "agent_running": agent})
    elif not service.is_installed:
        beside = f"; an agent runs in {where.root} without one" if agent else ""
        typer.echo(plain_text(f"there is no service{beside}; `farm-client service install` makes one"))
    else:
        runs = "runs" if running else "does not run"
        typer.echo(plain_text(f"the service {runs} ({service.system}, {service.path}). {service.advice}."))
    raise typer.Exit(0 if running else 1)


def _check_join_options(context: typer.Context, extra: tuple[str, ...]) -> None:
    """Have `join` read its options now: a service that it refuses would end at each start, unseen.

    Raises: BadSettings for those that a service must not have; the parser's errors for wrong ones.
    """
    root = context.find_root()
    assert isinstance(root.command, TyperGroup)  # noqa: S101  it has commands: this is one
    parsed = root.command.commands["join"].make_context("join", list(extra), parent=root)
    given = [name for name in _NOT_FOR_SERVICES if parsed.params.get(name)]
    if given:
        named = "the address" if given[0] == "url" else f"--{given[0].replace('as_', '').replace('_', '-')}"
        raise BadSettings(f"{named} is no option behind `--`; `farm-client service install --help` shows where it goes")
