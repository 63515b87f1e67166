"""A task's shards in memory, as many as fit: measured whatever they hold, the least recently used go first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from farm_client.data.held_memory import HeldMemory, measure
from farm_client.data.shards import Rows


class ShardCache:
    """Rows by the number of their shard. ``limit_bytes`` is asked each time; the last one used always stays."""

    def __init__(self, limit_bytes: Callable[[], int]) -> None:
        self._limit_bytes = limit_bytes
        self._rows: OrderedDict[int, Rows] = OrderedDict()
        self._held: dict[int, HeldMemory] = {}
        self._sharers: Counter[int] = Counter()
        """Of each buffer: how many shards hold it. Its bytes count once."""
        self._total_bytes = 0
        self._unmeasured: set[int] = set()

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
        self._unmeasured.add(shard)
        self.trim()
        self._is_about_to_be_read(shard, rows)

    def trim(self) -> None:
        """Let go of the least recently used shards until the rest is within the limit."""
        for shard in self._unmeasured:
            self._release(shard)
            self._hold(shard, measure(self._rows[shard].kept()))
        self._unmeasured.clear()
        while len(self._rows) > 1 and self._total_bytes > self._limit_bytes():
            oldest, _ = self._rows.popitem(last=False)
            self._release(oldest)

    def _is_about_to_be_read(self, shard: int, rows: Rows) -> None:
        if rows.grows:  # a data set of strangers may keep what it reads: measured anew at the next trim
            self._unmeasured.add(shard)

    def _hold(self, shard: int, memory: HeldMemory) -> None:
        self._held[shard] = memory
        self._total_bytes += memory.own_bytes
        for buffer, size_bytes in memory.buffers.items():
            self._total_bytes += size_bytes if not self._sharers[buffer] else 0
            self._sharers[buffer] += 1

    def _release(self, shard: int) -> None:
        memory = self._held.pop(shard, HeldMemory())
        self._total_bytes -= memory.own_bytes
        for buffer, size_bytes in memory.buffers.items():
            self._sharers[buffer] -= 1
            if not self._sharers[buffer]:
                del self._sharers[buffer]
                self._total_bytes -= size_bytes
