"""How the command line reaches a server that runs: by its folder's lock, its ``server.json`` and its process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from farm_server.environment.data_folder import DataFolder, ServerInfo, is_locked, read_server_info
from farm_server.environment.settings import ServerSettings
from protocol.errors import FarmError, NotFound, Unavailable
from protocol.rest import CollectedView, FarmView, RoomView, View

_ANSWER_SECONDS = 5.0
_COLLECT_SECONDS = 600.0
_STOP_SECONDS = 30.0
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05
_TAIL_LINES = 3
V = TypeVar("V", bound=View)


def running_server(data_dir: Path) -> ServerInfo:
    """Return what the folder's server says of itself.

    Raises: NotFound if none runs there. Unavailable if it has only just been started.
    """
    if not is_locked(data_dir):
        raise NotFound(f"no server runs on {data_dir}; start one with `farm-server up` (or give --data-dir)")
    info = read_server_info(data_dir)
    if info is None:
        raise Unavailable(f"the server on {data_dir} is starting or stopping; try again in a moment")
    return info


def farm_view(info: ServerInfo) -> FarmView:
    """Ask a running server how it is. Raises: Unavailable if it doesn't answer."""
    return _asked(info, "/v1/farm", FarmView)


def room_view(info: ServerInfo) -> RoomView:
    """Ask a running server what takes its room. Raises: Unavailable if it doesn't answer."""
    return _asked(info, "/v1/room", RoomView)


def collect(info: ServerInfo, *, dry_run: bool) -> CollectedView:
    """Let a running server remove what nothing needs. Raises: Unavailable if it doesn't answer."""
    return _asked(info, f"/v1/gc?dry_run={str(dry_run).lower()}", CollectedView, "POST", _COLLECT_SECONDS)


def _asked(
    info: ServerInfo, path: str, view: type[V], method: str = "GET", within_seconds: float = _ANSWER_SECONDS
) -> V:
    token, _, place = info.farm_url.removeprefix(f"{urlsplit(info.farm_url).scheme}://").rpartition("@")
    # the machine's own address: a proxy may be down, or not reachable from here
    url = info.local_url or f"{urlsplit(info.farm_url).scheme}://{place}"
    headers = {"Authorization": f"Bearer {unquote(token)}"}
    request = urllib.request.Request(f"{url}{path}", headers=headers, method=method)  # noqa: S310  # http(s) only
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=within_seconds) as answer:
            return view.model_validate_json(answer.read())
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Unavailable(f"the server with process id {info.pid} does not answer at {url}: {error}") from error


def start_detached(settings: ServerSettings, arguments: list[str]) -> ServerInfo:
    """Start a server in a session of its own and wait until it is ready; its log goes to the data folder.

    Raises: FarmError with what the new process said, if it could not start.
    """
    folder = DataFolder(settings.data_dir)
    with folder.log_file.open("ab") as log:
        begins_at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "farm_server", "up", "--json", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    with contextlib.closing(process.stdout) if process.stdout else contextlib.nullcontext() as stdout:
        line = stdout.readline() if stdout else b""
    if line:
        return ServerInfo(**json.loads(line))
    process.wait()
    raise _said(folder.log_file, begins_at)


def stop(data_dir: Path, *, force: bool) -> ServerInfo:
    """Stop the folder's server and wait until it has gone: it drains, unless forced.

    Raises: NotFound if none runs. Unavailable if it doesn't go.
    """
    info = running_server(data_dir)
    _signal(info.pid, signal.SIGKILL if force else signal.SIGTERM)
    if not _is_gone(data_dir, _KILL_SECONDS if force else _STOP_SECONDS):
        raise Unavailable(f"the server with process id {info.pid} is still running; try `farm-server down --force`")
    if force:
        (data_dir / "server.json").unlink(missing_ok=True)
    return info


def _is_gone(data_dir: Path, within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    while is_locked(data_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise Unavailable(f"the server with process id {pid} belongs to another user") from None


def _said(log_file: Path, begins_at: int) -> FarmError:
    with log_file.open("rb") as log:
        log.seek(begins_at)
        lines = log.read().decode(errors="replace").strip().splitlines()
    for line in lines:
        if line.startswith("error: "):
            return Unavailable(line.removeprefix("error: "))
    return Unavailable(f"the server could not start; {log_file} says: {' / '.join(lines[-_TAIL_LINES:]) or 'nothing'}")
