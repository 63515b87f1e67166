"""Checks everything that a server needs and reports what is wrong; with ``repair`` it removes what is left over.

Blobs are looked at only while no server runs on the folder: it changes them.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coordinator import recovery
from farm_server.edge.listener import bind
from farm_server.environment.data_folder import DataFolder, is_locked, read_server_info
from farm_server.environment.settings import ServerSettings
from farm_server.environment.signing_key import KEY_FILE
from protocol.errors import FarmError
from protocol.wording import counted, sized
from storage.blobs import FolderBlobStore
from storage.engine import ledger_path
from storage.inspection import Inspection, inspect_blobs, load_snapshot
from storage.ledger_file import ledger_damage
from storage.ledger_identity import is_blank
from storage.owner import check_owner
from storage.sqlite import SQLITE

_PACKAGES = ("aifarm", "torch", "fastapi", "uvicorn", "websockets", "sqlmodel", "safetensors")
_NAMED_AT_MOST = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def examine(settings: ServerSettings, *, repair: bool = False) -> Iterator[Finding]:
    """Yield one finding after the other; never raises."""
    checks: tuple[tuple[str, Callable[[ServerSettings], str]], ...] = (
        ("folder", _folder),
        ("permissions", _permissions),
        ("free space", _space),
        ("ledger", _ledger),
        ("checkpoints", _checkpoints),
        ("leftovers", _repaired if repair else _leftovers),
        ("port", _port),
        ("versions", _versions),
    )
    for name, check in checks:
        try:
            yield Finding(name, ok=True, detail=check(settings))
        except (FarmError, OSError, ImportError, PackageNotFoundError) as error:
            yield Finding(name, ok=False, detail=str(error))
        except Exception as error:
            # whatever a damaged folder provokes is what was looked for; one finding must not cost the others
            yield Finding(
                name, ok=False, detail=f"it can't be looked at ({type(error).__name__}: {_first_line(error)})"
            )


def _folder(settings: ServerSettings) -> str:
    root = settings.data_dir
    if not root.exists():
        return f"{root} does not exist yet; `farm-server up` makes it"
    DataFolder(root)
    if is_locked(root):
        info = read_server_info(root)
        return f"{root}, in use by " + (f"the server with process id {info.pid} at {info.url}" if info else "a server")
    return f"{root}, writable, no server runs on it"


def _permissions(settings: ServerSettings) -> str:
    """See that files can be written and that nobody else reads the tokens."""
    root = settings.data_dir
    for path in (root / "farm.db", root / "blobs"):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise OSError(f"{path} can't be written by this user; change its owner or permissions")
    for path in (root / "join.token", root / "farm.token", root / KEY_FILE):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise OSError(f"others can read {path}; run chmod 600 on it")
    return "the ledger, the blobs and the tokens are as they should be"


def _space(settings: ServerSettings) -> str:
    free = shutil.disk_usage(_existing(settings.data_dir)).free
    if free < settings.min_free_bytes:
        raise OSError(f"{sized(free)} are free and {sized(settings.min_free_bytes)} are needed; make room")
    return sized(free)


def _ledger(settings: ServerSettings) -> str:
    """See that it is whole, the one that the blobs belong to, and that a server could go on from it."""
    path = ledger_path(settings.ledger_url)
    check_owner(settings.data_dir / "blobs", path)
    if is_blank(path):
        return "none yet"
    if (damage := ledger_damage(path)) is not None:
        raise OSError(f"{path} is damaged: {damage}; restore it from a backup")
    snapshot = load_snapshot(path)
    recovery.restore(snapshot)
    return f"{path}, intact, {counted(len(snapshot.tasks), 'unfinished task')}, {sized(path.stat().st_size)}"


def _checkpoints(settings: ServerSettings) -> str:
    found = _inspected(settings)
    if found is None:
        return "not looked at: a server runs, or has not run yet"
    if found.unreadable:
        shown = ", ".join(found.unreadable[:_NAMED_AT_MOST])
        raise OSError(
            f"{len(found.unreadable)} of {found.needed} needed blobs are missing or damaged ({shown}); "
            "a task falls back to an older checkpoint by itself, the rest comes from a backup"
        )
    return f"{found.needed} blobs are needed, all are intact"


def _leftovers(settings: ServerSettings) -> str:
    found = _inspected(settings)
    if found is None:
        return "not looked at: a server runs, or has not run yet"
    return (
        f"{found.half_written} half-written files and {found.orphans} blobs that nothing needs; --repair removes them"
    )


def _repaired(settings: ServerSettings) -> str:
    """Remove leftovers; a young upload may still be waited for by its submission and stays."""
    if (found := _inspected(settings)) is None:
        return "nothing is repaired: a server runs, or has not run yet"
    folder = DataFolder(settings.data_dir)
    folder.lock()
    try:
        blobs = FolderBlobStore(folder.blobs)
        gone = blobs.collect(found.references, settings.blob_grace_seconds, time.time())
    finally:
        folder.unlock()
    return (
        f"removed {blobs.leftovers} half-written files and {gone.count} blobs that nothing needs ({sized(gone.bytes)})"
    )


def _inspected(settings: ServerSettings) -> Inspection | None:
    ledger = ledger_path(settings.ledger_url)
    if is_blank(ledger) or is_locked(settings.data_dir):
        return None
    return inspect_blobs(ledger, settings.data_dir / "blobs")


def _port(settings: ServerSettings) -> str:
    info = read_server_info(settings.data_dir)
    if info is not None and is_locked(settings.data_dir):
        return f"the running server listens at {info.url}"
    bind(settings.host, settings.port).close()
    return f"{settings.port} on {settings.host} is free"


def _versions(_settings: ServerSettings) -> str:
    importlib.import_module("torch")
    found = [f"{name} {version(name)}" for name in _PACKAGES]
    return ", ".join([f"Python {platform.python_version()}", *found, SQLITE.version])


def _first_line(error: Exception) -> str:
    """Return what an error says, without the statements that a database's driver adds."""
    return (str(error).strip().splitlines() or [""])[0]


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
