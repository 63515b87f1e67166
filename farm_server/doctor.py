"""Looks at everything that a server needs, without changing anything, and says what is wrong."""

from __future__ import annotations

import importlib
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from farm_server.datafolder import DataFolder, is_locked, read_server_info
from farm_server.listener import bind
from farm_server.settings import ServerSettings
from protocol.errors import FarmError
from storage.engine import ledger_path

_PACKAGES = ("aifarm", "torch", "fastapi", "uvicorn", "websockets", "sqlmodel", "safetensors")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def examine(settings: ServerSettings) -> Iterator[Finding]:
    """Yield one finding after the other; never raises."""
    checks: tuple[tuple[str, Callable[[ServerSettings], str]], ...] = (
        ("folder", _folder),
        ("free space", _space),
        ("ledger", _ledger),
        ("port", _port),
        ("versions", _versions),
    )
    for name, check in checks:
        try:
            yield Finding(name, ok=True, detail=check(settings))
        except (FarmError, OSError, sqlite3.Error, ImportError, PackageNotFoundError) as error:
            yield Finding(name, ok=False, detail=str(error))


def _folder(settings: ServerSettings) -> str:
    root = settings.data_dir
    if not root.exists():
        return f"{root} does not exist yet; `farm-server up` makes it"
    DataFolder(root)
    if is_locked(root):
        info = read_server_info(root)
        return f"{root}, in use by " + (f"the server with process id {info.pid} at {info.url}" if info else "a server")
    return f"{root}, writable, no server runs on it"


def _space(settings: ServerSettings) -> str:
    free = shutil.disk_usage(_existing(settings.data_dir)).free
    if free < settings.min_free_bytes:
        raise OSError(f"{free} bytes are free and {settings.min_free_bytes} are needed; make room")
    return f"{free / 1024**3:.1f} GiB"


def _ledger(settings: ServerSettings) -> str:
    path = ledger_path(settings.ledger_url)
    if not path.exists():
        return "none yet"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
    try:
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        tasks = connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
    finally:
        connection.close()
    if verdict != "ok":
        raise OSError(f"{path} is damaged: {verdict}; restore it from a backup")
    return f"{path}, intact, {tasks} tasks, {path.stat().st_size} bytes"


def _port(settings: ServerSettings) -> str:
    info = read_server_info(settings.data_dir)
    if info is not None and is_locked(settings.data_dir):
        return f"the running server listens at {info.url}"
    bind(settings.host, settings.port).close()
    return f"{settings.port} on {settings.host} is free"


def _versions(_settings: ServerSettings) -> str:
    importlib.import_module("torch")
    found = [f"{name} {version(name)}" for name in _PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found, f"SQLite {sqlite3.sqlite_version}"])


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
