"""How fast bulk may flow in one direction: for the whole server, and for each client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Final

from aiolimiter import AsyncLimiter

_WINDOW_SECONDS: Final = 0.05
"""What a limit allows in this time may pass at once: the most that a second can have too much is a twentieth."""
_CLIENTS_REMEMBERED: Final = 4096


class Bandwidth:
    """The limits of one direction, in bytes per second; 0 is none. For one event loop."""

    def __init__(self, total: int, each: int) -> None:
        self._total = _limiter(total)
        self.is_limited = bool(total or each)
        self._of_client = lru_cache(_CLIENTS_REMEMBERED)(lambda _client: _limiter(each))

    async def pace(self, client: str, data: bytes) -> AsyncIterator[bytes]:
        """Give the data back in pieces, each as soon as the limits allow it."""
        limiters = [limiter for limiter in (self._of_client(client), self._total) if limiter is not None]
        if not limiters:
            yield data
            return
        piece_bytes = int(min(limiter.max_rate for limiter in limiters))
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            for limiter in limiters:
                await limiter.acquire(len(piece))
            yield piece


def _limiter(bytes_per_second: int) -> AsyncLimiter | None:
    if not bytes_per_second:
        return None
    at_once = max(bytes_per_second * _WINDOW_SECONDS, 1.0)
    return AsyncLimiter(at_once, at_once / bytes_per_second)
