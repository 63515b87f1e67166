"""One blob of the cache, as the running agent knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from farm_client.agent.blobs.cache_book import MOST_USERS, BlobNote
from farm_client.agent.blobs.cache_files import Look
from farm_client.agent.blobs.eviction import Esteem


@dataclass(slots=True)
class CacheEntry:
    """A blob that is here, or on its way."""

    standing: Esteem
    """On the monotonic clock."""
    whole: bool = True
    hits: int = 0
    tasks: tuple[str, ...] = ()
    """For whom it was used, the latest last."""
    look: Look | None = None
    """What its file looked like when it was last found sound, in this run."""
    touched_at: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Of the whole blob."""
        return self.standing.size_bytes

    def used_by(self, task_id: str) -> None:
        """Note for whom it was used."""
        if self.tasks[-1:] != (task_id,):
            self.tasks = (*(user for user in self.tasks if user != task_id), task_id)[-MOST_USERS:]

    def note(self) -> BlobNote:
        """Return what the book keeps of it."""
        known = self.standing
        return BlobNote(
            hits=self.hits,
            fetch_seconds=known.fetch_seconds,
            popularity=known.popularity,
            base=known.base,
            tasks=self.tasks,
        )


class Cleared(NamedTuple):
    """Count of the removed blobs, and of those that stay because they are in use."""

    blobs: int = 0
    size_bytes: int = 0
    in_use: int = 0
