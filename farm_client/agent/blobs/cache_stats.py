"""Counters of the cache: hits, misses, evictions, damage; for `farm-client status` and the log."""

from __future__ import annotations

from farm_client.transfer.tally import size_in_words
from protocol.frozen import Frozen


class CacheStats(Frozen):
    """Counted since the agent started, except ``entries`` and ``used_bytes``, which are as of now. Sizes in bytes."""

    entries: int = 0
    used_bytes: int = 0
    """With what is being fetched, or was when it was cut."""
    max_bytes: int = 0
    hits: int = 0
    misses: int = 0
    served_bytes: int = 0
    """Not fetched, because they were here."""
    evictions: int = 0
    evicted_bytes: int = 0
    damaged: int = 0
    """Entries that were not what their name says any more; they are fetched again."""

    def in_words(self) -> str:
        """Say it in a line."""
        asked = self.hits + self.misses
        parts = (
            f"{size_in_words(self.used_bytes)} of {size_in_words(self.max_bytes)} in {self.entries} blobs",
            f"{self.hits} of {asked} asked for were here ({size_in_words(self.served_bytes)} not fetched)",
            f"{self.evictions} evicted ({size_in_words(self.evicted_bytes)})",
            f"{self.damaged} damaged",
        )
        return f"cache: {'; '.join(parts)}"

    @property
    def hit_rate(self) -> float:
        """Which share of the requested blobs was here, from 0 to 1; 0 if nothing was."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0
