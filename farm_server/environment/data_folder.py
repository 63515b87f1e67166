"""The folder that a server owns while it runs: its lock, its secrets, and the file with its address."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from filelock import FileLock, Timeout

from farm_server.environment.settings import ServerSettings
from farm_server.environment.signing_key import KEY_FILE, SigningKey
from farm_server.environment.tokens import Tokens, load_or_create_token
from protocol.errors import Conflict, FarmError, Unavailable

_log = structlog.get_logger(__name__)
_LOCK_SECONDS = 0.5
"""Long enough for somebody who only looks whether the folder is locked."""


@dataclass(frozen=True, slots=True, repr=False)
class ServerInfo:
    """The contents of ``server.json``: the running server. The URLs carry tokens: the file is for its owner only."""

    pid: int
    url: str
    join_url: str
    farm_url: str
    local_url: str = ""
    """How this machine reaches it, past any proxy; empty in what an older server wrote."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))


class DataFolder:
    """A data folder, made (mode 0700) if it is not there.

    Raises: Unavailable if it can't be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = FileLock(root / "server.lock", mode=0o600)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.blobs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unusable(root, error) from error
        if not os.access(root, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(root).f_flag & os.ST_RDONLY
            why = "it is on a read-only file system" if is_read_only else "this user may not write there"
            raise unusable(root, PermissionError(why))

    @property
    def blobs(self) -> Path:
        """The blob store's folder."""
        return self.root / "blobs"

    @property
    def log_file(self) -> Path:
        """Where a detached server writes its log."""
        return self.root / "server.log"

    @property
    def kept_port(self) -> int | None:
        """The port of the folder's last server, or None if it had none yet."""
        try:
            port = int((self.root / "port").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return port if 0 < port < 2**16 else None

    def keep_port(self, port: int) -> None:
        """Remember the port for the next start with ``--port 0``. A folder that refuses costs only that."""
        try:
            (self.root / "port").write_text(f"{port}\n", encoding="ascii")
        except OSError as error:
            _log.warning("the port can't be remembered", error=str(error))

    def lock(self) -> None:
        """Take the folder for this process, until ``unlock``.

        Raises: Conflict naming the owner if another server has it.
        """
        try:
            self._lock.acquire(timeout=_LOCK_SECONDS)
            (self.root / "server.json").unlink(missing_ok=True)  # of a server that was killed
        except Timeout:
            owner = read_server_info(self.root)
            who = f"the server with process id {owner.pid} at {owner.url}" if owner else "another server"
            raise Conflict(
                f"the data folder {self.root} is in use by {who}; stop it (`farm-server down`) or give --data-dir"
            ) from None
        except OSError as error:
            raise unusable(self.root, error) from error

    def unlock(self) -> None:
        """Give the folder back and remove what says that a server runs."""
        (self.root / "server.json").unlink(missing_ok=True)
        self._lock.release()

    def tokens(self, settings: ServerSettings) -> Tokens:
        """Return the farm's secrets: those of the settings, else those of the folder, made on the first call."""
        try:
            join = settings.join_token or load_or_create_token(self.root / "join.token")
            farm = settings.farm_token or load_or_create_token(self.root / "farm.token")
        except OSError as error:
            raise unusable(self.root, error) from error
        return Tokens(*(t if isinstance(t, str) else t.get_secret_value() for t in (join, farm)))

    def signing_key(self) -> SigningKey:
        """Return the key of the farm's certificates, made on the first call."""
        key = SigningKey(self.root / KEY_FILE)
        try:
            key.make()
        except OSError as error:
            raise unusable(self.root, error) from error
        return key

    def publish(self, info: ServerInfo) -> None:
        """Write ``server.json`` (mode 0600), whole or not at all."""
        temporary = self.root / f"server.json.{info.pid}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(info.to_json() + "\n")
        temporary.replace(self.root / "server.json")


def unusable(root: Path, error: OSError) -> FarmError:
    """Return the error for a folder that can't hold a server's data."""
    return Unavailable(f"the data folder {root} can't be used: {error.strerror or error}; give another by --data-dir")


def is_locked(root: Path) -> bool:
    """Return whether a server holds the folder's lock now."""
    if not (root / "server.lock").exists():
        return False
    lock = FileLock(root / "server.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def read_server_info(root: Path) -> ServerInfo | None:
    """Return what the folder's server wrote of itself, or None if it wrote nothing readable."""
    try:
        fields = json.loads((root / "server.json").read_text(encoding="utf-8"))
        return ServerInfo(**fields)
    except (OSError, ValueError, TypeError):
        return None
