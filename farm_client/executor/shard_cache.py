"""A task's shards in memory, as many as fit: measured whatever they hold, the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from farm_client.data.held_memory import HeldMemory, measure, total_bytes
from farm_client.data.shards import Rows


class ShardCache:
    """Rows by the number of their shard. ``limit_bytes`` is asked each time; the last one used always stays."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._rows: OrderedDict[int, Rows] = OrderedDict()
        self._held: dict[int, HeldMemory] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, shard: int) -> Rows | None:
        """Return a shard's rows if they are kept; they are then the most recently used."""
        rows = self._rows.get(shard)
        if rows is not None:
            self._rows.move_to_end(shard)
            self._is_about_to_be_read(shard, rows)
        return rows

    def put(self, shard: int, rows: Rows) -> None:
        """Keep a shard, and let go of others until all that is kept is within the limit."""
        self._rows[shard] = rows
        self.trim()
        self._is_about_to_be_read(shard, rows)

    def trim(self) -> None:
        """Let go of the least recently used shards until the rest is within the limit."""
        for shard, rows in self._rows.items():
            if shard not in self._held:
                self._held[shard] = measure(rows.kept())
        while len(self._rows) > 1 and total_bytes(self._held.values()) > self._limit_bytes():
            oldest, _ = self._rows.popitem(last=False)
            del self._held[oldest]

    def _is_about_to_be_read(self, shard: int, rows: Rows) -> None:
        if rows.grows:  # a data set of strangers may keep what it reads: measured anew at the next trim
            self._held.pop(shard, None)
