"""`farm-client environments`: which packages of tasks are installed, and their removal."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from farm_client.agent.cli_parts import HomeOption, JsonOption, print_envelope
from farm_client.agent.environments.store import BuiltEnvironment, EnvironmentStore
from farm_client.agent.errors import HomeInUse, NoEnvironment
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.settings import load_settings
from protocol.terminal_text import plain_text
from protocol.wording import counted, sized

environments_app = typer.Typer(no_args_is_help=True)


@environments_app.callback()
def options() -> None:
    """Show the packages that were installed for tasks, or remove them."""


@environments_app.command("list")
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List what is installed: each environment's packages, size and last use."""
    store = _store(HomeFolder(load_settings(home=home).home))
    kept = store.list()
    if as_json:
        listed = [about.model_dump(mode="json") for about in kept]
        print_envelope(
            "client_environments", {"folder": str(store.root), "max_bytes": store.max_bytes, "environments": listed}
        )
        return
    typer.echo(plain_text("\n".join(map(_line, kept)) or "nothing is installed for tasks here"))


@environments_app.command()
def clear(
    digest: Annotated[
        str | None, typer.Argument(help="An environment's digest, or a unique beginning.", show_default="all")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove one environment, or all; the next task that needs it has it installed anew."""
    where = HomeFolder(load_settings(home=home).home.absolute())
    if where.in_use():
        raise HomeInUse("an agent runs in this home, and uses its environments; stop it first")
    store = _store(where)
    chosen = _chosen(store.list(), digest)
    if chosen:
        with where.held():
            for about in chosen:
                store.remove(about.digest)
    size_bytes = sum(about.size_bytes for about in chosen)
    if as_json:
        print_envelope("client_environments_cleared", {"environments": len(chosen), "size_bytes": size_bytes})
    else:
        typer.echo(f"removed {counted(len(chosen), 'environment')}, {sized(size_bytes)}")


def _store(where: HomeFolder) -> EnvironmentStore:
    return EnvironmentStore(where.environments_dir, load_settings().environment_bytes)


def _chosen(kept: list[BuiltEnvironment], digest: str | None) -> list[BuiltEnvironment]:
    """Return those to remove. Raises: NoEnvironment if the beginning of a digest is that of none, or of several."""
    if digest is None:
        return kept
    found = [about for about in kept if about.digest.startswith(digest)]
    if len(found) != 1:
        said = "no environment begins" if not found else f"{len(found)} environments begin"
        raise NoEnvironment(f"{said} with {digest!r}; `farm-client environments list` shows them")
    return found


def _line(about: BuiltEnvironment) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(about.used_at))
    packages = ", ".join(about.packages) or "this machine has all that the lock names"
    return (
        f"{about.digest[:12]}  {sized(about.size_bytes):>10}  used {used}  "
        f"{counted(len(about.packages), 'package')}: {packages}"
    )
