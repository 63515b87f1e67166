"""How fast bulk may flow in one direction: for the whole server, and for each client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from aiolimiter import AsyncLimiter

_WINDOW_SECONDS: Final = 0.05
"""What a limit allows in this time may pass at once: the most that a second can have too much is a twentieth."""
_CLIENTS_REMEMBERED: Final = 4096


class Bandwidth:
    """The limits of one direction, in bytes per second; 0 is none. For one event loop."""

    def __init__(self, total: int, each: int) -> None:
        self.is_limited = bool(total or each)
        self._users = 0
        self._total = _limit(total)
        self._of_client = lru_cache(_CLIENTS_REMEMBERED)(lambda _client: _limit(each))

    @contextmanager
    def in_use(self) -> Iterator[int]:
        """Count a transfer for the length of the block; gives how many there are, itself among them."""
        self._users += 1
        try:
            yield self._users
        finally:
            self._users -= 1

    async def pace(self, client: str, data: bytes) -> AsyncIterator[bytes]:
        """Give the data back in pieces, each as soon as the limits allow it."""
        limits = [limit for limit in (self._of_client(client), self._total) if limit is not None]
        if not limits:
            yield data
            return
        piece_bytes = min(limit.at_once_bytes for limit in limits)
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            for limit in limits:
                await limit.take(len(piece))
            yield piece


class _Limit:
    """A leaky bucket with a queue: the bucket by itself serves small amounts first, and large ones might never come."""

    def __init__(self, bytes_per_second: int) -> None:
        at_once = max(bytes_per_second * _WINDOW_SECONDS, 1.0)
        self.at_once_bytes = int(at_once)
        self._bucket = AsyncLimiter(at_once, at_once / bytes_per_second)
        self._queue = asyncio.Lock()

    async def take(self, count: int) -> None:
        async with self._queue:
            await self._bucket.acquire(count)


def _limit(bytes_per_second: int) -> _Limit | None:
    return _Limit(bytes_per_second) if bytes_per_second else None
