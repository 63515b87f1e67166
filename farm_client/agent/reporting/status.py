"""The status file of the running agent, for `farm-client status` in another terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.transfer.tally import Tally
from protocol.frozen import Frozen


class Status(Frozen):
    """``doing`` is one line, always with its reason. Times are Unix seconds."""

    doing: str = "starting"
    farm: str = ""
    client_id: str = ""
    name: str = ""
    task: str = ""
    round: int | None = None
    delivered: int = 0
    cache: CacheStats = CacheStats()
    moved: Tally = Tally()
    """Over the network, since the agent started."""
    updated_at: float = 0.0


def _nothing_moved() -> tuple[CacheStats, Tally]:
    return CacheStats(), Tally()


@dataclass(slots=True)
class StatusBoard:
    """Counts what was delivered, and writes the status file at heartbeats: never for a round."""

    path: Path
    status: Status = field(default_factory=Status)
    delivered: int = 0
    look: Callable[[], tuple[CacheStats, Tally]] = _nothing_moved
    """How the cache and the transfers fare."""

    def show(self, **changes: str | int | None) -> None:
        """Change some fields of the status and write it; it is for show only, so a full disk may keep an old one."""
        cache, moved = self.look()
        counts = {"delivered": self.delivered, "cache": cache, "moved": moved, "updated_at": time.time()}
        self.status = self.status.model_copy(update={**changes, **counts})
        unfinished = self.path.with_suffix(".new")
        with suppress(OSError):
            unfinished.write_text(self.status.model_dump_json())
            unfinished.replace(self.path)


def read_status(path: Path) -> Status:
    """Read what an agent last wrote; the default if it never wrote."""
    try:
        return Status.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return Status(doing="nothing is known of it yet")
