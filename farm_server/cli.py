"""``farm-server``: up, status, down, doctor, gc, backup, restore.

Results on stdout, chatter on stderr; exit codes 0, 1 and 2 (usage).
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from farm_server.environment.data_folder import ServerInfo
from farm_server.environment.settings import ServerSettings
from farm_server.operations import running_server
from farm_server.operations.setting_options import with_settings
from protocol.errors import FarmError
from protocol.rest import FarmView, RoomView
from protocol.wording import counted, sized

_TASKS_SHOWN: Final = 5
app = typer.Typer(
    help="The farm's server: it hands out work, adds up what comes back, and keeps every task safe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The server's folder (FARM_SERVER_DATA_DIR).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1."""
    debug = "--debug" in sys.argv
    try:
        app()
    except FarmError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"error: {error.message}", err=True)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001  # read by main
) -> None:
    """Accept what goes before any command."""
    if show_version:
        typer.echo(version("aifarm"))
        raise typer.Exit


@app.command()
@with_settings("upload_rate", "download_rate", "client_upload_rate", "client_download_rate")
def up(
    *,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = None,
    public_url: Annotated[str | None, typer.Option(help="How others reach it, where a proxy stands in front.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background, log to the data folder.")] = False,
    new_ledger: Annotated[
        bool, typer.Option("--new-ledger", help="Go on although the blobs' own ledger is lost; they stay for a week.")
    ] = False,
    as_json: AsJson = False,
    **rates: str | None,
) -> None:
    """Start the server and print the line that a volunteer pastes to join."""
    given = {"data_dir": data_dir, "host": host, "port": port, "public_url": public_url, "log_format": log_format}
    given |= rates
    settings = _settings(**given)
    if detach:
        arguments = [*_as_arguments(given), *(["--new-ledger"] if new_ledger else [])]
        _announce(running_server.start_detached(settings, arguments), as_json=as_json)
        return
    from farm_server.observability.logs import configure_logs  # noqa: PLC0415
    from farm_server.operations.daemon import run  # noqa: PLC0415  # status and down must not pay for the web framework

    configure_logs(settings)
    run(settings, lambda info: _announce(info, as_json=as_json), new_ledger=new_ledger)


@app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Say whether a server runs on the folder, how it is, and how to reach it."""
    info = running_server.running_server(_settings(data_dir=data_dir).data_dir)
    view, room = running_server.farm_view(info), running_server.room_view(info)
    if as_json:
        _print_json({**asdict(info), "farm": view.model_dump(), "room": room.model_dump()})
        return
    typer.echo(
        f"{view.name}: {counted(view.clients_online, 'client')} online, {counted(view.tasks_active, 'task')} active"
    )
    if view.uploads_open or view.uploads_waiting:
        typer.echo(f"uploads: {view.uploads_open} under way, {view.uploads_waiting} wait for their turn")
    for line in _traffic_lines(view):
        typer.echo(line)
    for line in _disk_lines(room):
        typer.echo(line)
    if view.problem:
        typer.echo(f"NOT READY: {view.problem}")
    _announce(info, as_json=False)


@app.command()
def down(
    data_dir: DataDir = None,
    force: Annotated[bool, typer.Option("--force", help="Kill it; nothing that was committed is lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the folder's server: clients are told, rounds that are committed stay."""
    info = running_server.stop(_settings(data_dir=data_dir).data_dir, force=force)
    if as_json:
        _print_json({"stopped": True, "pid": info.pid})
    else:
        typer.echo(f"stopped the server with process id {info.pid}")


@app.command()
def doctor(
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address that `up` would listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port that `up` would listen on.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Remove what nothing needs (no server may run).")] = False,
    as_json: AsJson = False,
) -> None:
    """Check folder, permissions, space, ledger, checkpoints, leftovers, port; exit code 1 if something is wrong."""
    from farm_server.operations.doctor import examine  # noqa: PLC0415  # it needs torch and the database driver

    findings = list(examine(_settings(data_dir=data_dir, host=host, port=port), repair=repair))
    if as_json:
        _print_json({"ok": all(f.ok for f in findings), "findings": [asdict(f) for f in findings]})
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


@app.command()
def gc(
    data_dir: DataDir = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove now what nothing needs: unreferenced blobs, and history beyond what is kept; a server may run."""
    from farm_server.operations.gc import collect  # noqa: PLC0415  # it needs the database driver

    cleaned = collect(_settings(data_dir=data_dir), dry_run=dry_run)
    if as_json:
        _print_json(cleaned.model_dump())
        return
    verb = "would be removed" if dry_run else "are removed"
    typer.echo(f"{cleaned.blobs} blobs ({sized(cleaned.bytes)}) and {cleaned.rows} rows of history {verb}")


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is empty or not there yet.")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy ledger, blobs and tokens into DIR, consistent as of one moment; the server may run meanwhile."""
    from farm_server.operations.backup import back_up  # noqa: PLC0415  # it needs the database driver

    manifest = back_up(_settings(data_dir=data_dir), target)
    if as_json:
        _print_json({"backup": str(target), **_counts(manifest.size_bytes, len(manifest.files), manifest.missing)})
        return
    typer.echo(f"{counted(len(manifest.files), 'file')}, {sized(manifest.size_bytes)}, are in {target}")
    for digest in manifest.missing:
        typer.echo(f"MISSING: blob {digest} was lost or damaged before the backup", err=True)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `farm-server backup` made.")],
    data_dir: Annotated[Path, typer.Option("--data-dir", help="The new server's folder, empty or not there yet.")],
    as_json: AsJson = False,
) -> None:
    """Check a backup's digests and load it into a new data folder; then start `farm-server up` on that."""
    from farm_server.operations.backup import restore as load  # noqa: PLC0415  # it needs the database driver

    manifest = load(source, data_dir)
    if as_json:
        _print_json({"data_dir": str(data_dir), **_counts(manifest.size_bytes, len(manifest.files), manifest.missing)})
        return
    typer.echo(f"{counted(len(manifest.files), 'file')}, {sized(manifest.size_bytes)}, are in {data_dir}")


def _disk_lines(room: RoomView) -> Iterator[str]:
    """Return how much is free, what is kept, and which tasks take most."""
    yield f"disk: {sized(room.free_bytes)} free, the ledger has {sized(room.ledger_bytes)}"
    yield f"kept: {room.policy}"
    for task in room.tasks[:_TASKS_SHOWN]:
        name = "".join(c if c.isprintable() else "?" for c in task.name)
        takes = f"{sized(task.blob_bytes)} of blobs, {task.rows} rows of history"
        yield f"  {task.task_id} {name} ({task.state}): {takes}"
    if room.tasks:
        yield "`farm rm TASK` removes a task that is over, `farm-server gc` what nothing needs"


def _traffic_lines(view: FarmView) -> Iterator[str]:
    if view.pace is not None:
        beat, lost, idle = view.pace.heartbeat_seconds, view.pace.lost_after_seconds, view.pace.idle_heartbeat_seconds
        yield f"clients report every {beat:g} s and are lost after {lost:g} s of silence: {view.pace.reason}"
        if idle is not None and idle > beat:
            yield f"clients without work report every {idle:.3g} s"
    for name, traffic in (("in", view.received), ("out", view.sent)):
        messages = traffic.solo_messages + traffic.batched_messages
        yield f"{name}: {messages} messages in {traffic.frames} frames, {traffic.batched_messages} of them batched"


def _counts(size_bytes: int, files: int, missing: tuple[str, ...]) -> dict[str, Any]:
    return {"bytes": size_bytes, "files": files, "missing": list(missing)}


def _settings(**given: Any) -> ServerSettings:
    """Return the settings; a value that can't be is a usage error."""
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "settings"
        raise typer.BadParameter(
            f"{first['msg']} (--{where.replace('_', '-')} or FARM_SERVER_{where.upper()})"
        ) from error


def _as_arguments(given: dict[str, Any]) -> Iterator[str]:
    for option, value in given.items():
        if value is None:
            continue
        yield f"--{option.replace('_', '-')}"
        yield str(value.absolute() if isinstance(value, Path) else value)


def _announce(info: ServerInfo, *, as_json: bool) -> None:
    if as_json:
        print(info.to_json(), flush=True)  # noqa: T201
        return
    typer.echo(
        f"The farm is ready: {info.url}\n"
        f"  a volunteer joins with:  farm-client join {info.join_url}\n"
        f"  a researcher sets:       export FARM_URL={info.farm_url}"
    )
    sys.stdout.flush()


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data))
