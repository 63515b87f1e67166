"""`farm-client cache`: what is kept for which task, and its removal."""

from __future__ import annotations

from typing import Annotated

import typer

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_entry import Cleared
from farm_client.agent.blobs.cache_view import find_task, in_lines, look_into
from farm_client.agent.cli_parts import HomeOption, JsonOption, print_envelope
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.owner.control import ask
from farm_client.agent.settings import AgentSettings, load_settings
from protocol.terminal_text import plain_text
from protocol.wording import counted, sized

cache_app = typer.Typer(no_args_is_help=True)


@cache_app.callback()
def options() -> None:
    """Show what is kept of the farm's files, or remove it."""


@cache_app.command()
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List by task what is kept: last use, hits, seconds to fetch and to warm, and bytes on this disk."""
    settings = load_settings(home=home)
    root = HomeFolder(settings.home).cache_dir
    tasks = look_into(root)
    if as_json:
        listed = [task.model_dump(mode="json") for task in tasks]
        print_envelope("client_cache", {"folder": str(root), "max_bytes": settings.cache_bytes, "tasks": listed})
    else:
        typer.echo(plain_text("\n".join(in_lines(tasks))))


@cache_app.command()
def clear(
    task: Annotated[
        str | None, typer.Argument(help="The task's id, a unique beginning of it, or its name.", show_default="all")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what is kept, of one task or all; what other tasks used too, or something uses now, stays."""
    cleared = _clear(load_settings(home=home), task)
    if as_json:
        print_envelope("client_cache_cleared", cleared._asdict())
        return
    kept = f"; {counted(cleared.in_use, 'blob')} in use stayed" if cleared.in_use else ""
    typer.echo(f"removed {counted(cleared.blobs, 'blob')}, {sized(cleared.size_bytes)}{kept}")


def _clear(settings: AgentSettings, task: str | None) -> Cleared:
    """Have the running agent do it, which knows what it uses; without one, do it in its place."""
    where = HomeFolder(settings.home.absolute())
    if where.in_use():
        return Cleared(**ask(where.control_socket, {"do": "clear_cache", "task": task}))
    task_id = None if task is None else find_task(where.cache_dir, task)
    if not where.cache_dir.is_dir():
        return Cleared()
    with where.held():
        return BlobCache(where.cache_dir, settings.cache_bytes).clear(task_id)
