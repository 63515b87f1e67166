"""Everything an operator may change, with every default, in one place.

Read from the command line first, then from ``FARM_SERVER_*`` in the environment, then from here.
``docs/reference/settings.md`` lists them and a test fails when the two differ.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from protocol.limits import HEARTBEAT_SECONDS, INLINE_BYTES, LOST_AFTER_SECONDS, MAX_FRAME_BYTES

GIBIBYTE = 1024**3
MEBIBYTE = 1024**2


def default_data_dir() -> Path:
    """Return the per-user folder that the operating system reserves for such data."""
    return Path(platformdirs.user_data_dir("aifarm", appauthor=False)) / "server"


class ServerSettings(BaseSettings):
    """The server's settings. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="FARM_SERVER_", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    data_dir: Path = Field(default_factory=default_data_dir)
    """The folder of the database, blobs, tokens and the lock; one server at a time."""
    name: str = Field(default_factory=socket.gethostname)
    """What the farm calls itself on its status page."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets other machines in."""
    port: int = Field(default=8470, ge=0, le=65535)
    """The port to listen on; 0 picks a free one."""
    public_url: str | None = None
    """How others reach this server (http://host:port or https://host), where a proxy stands in front."""
    allowed_hosts: str = ""
    """More names that it answers to without a token, with commas between; its own, `localhost`, the public URL's and
    numeric addresses always are; `*` allows every name."""
    database_url: SecretStr | None = None
    """Where the ledger is kept; a SQLite file in the data folder when unset."""
    join_token: SecretStr | None = None
    """The volunteers' token; made once and kept in the data folder when unset."""
    farm_token: SecretStr | None = None
    """The researchers' and operators' token; made once and kept in the data folder when unset."""

    heartbeat_seconds: float = Field(default=HEARTBEAT_SECONDS, gt=0)
    """How often clients report."""
    lost_after_seconds: float = Field(default=LOST_AFTER_SECONDS, gt=0)
    """A client that was silent for so long is lost."""
    stall_seconds: float = Field(default=60.0, gt=0)
    """A client that beats without getting on with its work for so long loses it to another."""
    hello_seconds: float = Field(default=10.0, gt=0)
    """A connection that has not introduced itself by then is closed."""
    tick_seconds: float = Field(default=0.25, gt=0, le=0.5)
    """How often the coordinator is told that time passed."""
    drain_seconds: float = Field(default=5.0, ge=0)
    """How long a shutdown waits for clients to say goodbye."""

    max_clients: int = Field(default=10_000, ge=1)
    """Clients at once."""
    max_connections: int = Field(default_factory=lambda data: 2 * data.get("max_clients", 0) + 1000, ge=8)
    """Connections of all kinds at once; fewer where the process may open fewer files."""
    max_unknown_connections: int = Field(default=8192, ge=4)
    """Connections at once that have shown no token yet; where one more comes, the oldest of them goes."""
    max_unknown_per_address: int = Field(default=6000, ge=4)
    """The same for one address; many clients may share one (a proxy, a network behind one router)."""
    max_frame_bytes: int = Field(default=MAX_FRAME_BYTES, ge=64 * 1024)
    """The largest WebSocket message."""
    max_blob_bytes: int = Field(default=64 * GIBIBYTE, ge=MEBIBYTE)
    """The largest upload."""
    max_body_bytes: int = Field(default=16 * MEBIBYTE, ge=64 * 1024)
    """The largest JSON request (a submission names every shard)."""
    max_outbox_bytes: int = Field(default=32 * MEBIBYTE, ge=MEBIBYTE)
    """Unsent bytes for one client; a slower reader is dropped."""
    inline_cache_bytes: int = Field(default=64 * MEBIBYTE, ge=0)
    """Memory for small blobs that ride inside messages."""
    min_free_bytes: int = Field(default=256 * MEBIBYTE, ge=0)
    """Below this much free space no upload, task or client is taken in; below a quarter of it no checkpoint either."""

    aggregator_threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)
    """Tasks that can be aggregated at the same time."""
    torch_threads: int = Field(default=1, ge=1)
    """Threads of one tensor operation."""
    blob_grace_seconds: float = Field(default=3600.0, gt=0)
    """An upload that nothing refers to is kept for so long."""
    collect_seconds: float = Field(default=600.0, gt=0)
    """How often unreferenced blobs are looked for."""
    retention_seconds: float = Field(default=5.0, gt=0)
    """How often superseded checkpoints are dropped."""
    superseded_grace_seconds: float = Field(default=20.0, ge=0)
    """A superseded checkpoint too large for a message stays downloadable for so long."""

    keep_log_lines: int = Field(default=100_000, ge=0)
    """Log lines of one task that are kept, the newest."""
    keep_metric_points: int = Field(default=500_000, ge=0)
    """Metric values of one task that are kept, the newest."""
    keep_events: int = Field(default=100_000, ge=0)
    """Events of one task that are kept, the newest."""
    keep_history_seconds: float = Field(default=90 * 86400.0, ge=0)
    """So long after a task's end its rounds, assignments, events, metrics and log lines go; its checkpoints stay."""
    keep_inputs_seconds: float = Field(default=7 * 86400.0, ge=0)
    """So long after a task's end its code and data stay, unless it is removed: so long it can be continued."""

    upload_credits: int = Field(default_factory=lambda data: max(2, 2 * data.get("aggregator_threads", 1)), ge=1)
    """Uploads over 1 MiB that may be under way at once; others wait their turn."""
    upload_idle_seconds: float = Field(default=10.0, gt=0)
    """An upload that brings no byte for so long gives its turn to others; what is here stays."""
    upload_least_rate: ByteSize = ByteSize(64 * 1024)
    """Blob bytes per second that an upload must bring to keep its turn while others wait."""
    upload_part_bytes: int = Field(default=16 * MEBIBYTE, ge=MEBIBYTE)
    """The largest part of an upload."""
    upload_parallel: int = Field(default=4, ge=1, le=16)
    """Parts of one upload that a client may send at the same time."""
    upload_grace_seconds: float = Field(default=86400.0, gt=0)
    """An unfinished upload that nobody continues is kept for so long, unless the disk is short."""
    upload_rate: ByteSize = ByteSize(0)
    """Blob bytes per second that the server takes in, such as 50MB; 0: no limit."""
    download_rate: ByteSize = ByteSize(0)
    """Blob bytes per second that the server gives out; 0: no limit."""
    client_upload_rate: ByteSize = ByteSize(0)
    """Blob bytes per second that it takes from one client; 0: no limit."""
    client_download_rate: ByteSize = ByteSize(0)
    """Blob bytes per second that it gives to one client; 0: no limit."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important line that is logged."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """JSON lines, or text for people; auto is text on a terminal."""

    @property
    def room_bytes(self) -> int:
        """Return the largest blob that rides inside a message: what else is in one needs room in the frame too."""
        return min(INLINE_BYTES, self.max_frame_bytes // 2)

    @property
    def ledger_url(self) -> str:
        """Return the SQLAlchemy URL of the ledger."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'farm.db'}"
