"""Bandwidth limits, each shared by all transfers of a process in its direction."""

from __future__ import annotations

from typing import Final

from aiolimiter import AsyncLimiter

_BURST_SECONDS: Final = 0.1
"""What may pass at once after a pause, as time at the full rate: a link that others use too must not be flooded."""


class RateLimit:
    """Lets at most ``bytes_per_second`` pass, in the order of asking; None lets everything pass."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self._burst_bytes = max(1.0, bytes_per_second * _BURST_SECONDS) if bytes_per_second else None
        self._bucket = (
            AsyncLimiter(self._burst_bytes, self._burst_bytes / bytes_per_second)
            if bytes_per_second and self._burst_bytes
            else None
        )

    @property
    def is_limited(self) -> bool:
        """Whether anything ever waits."""
        return self._bucket is not None

    def portion_bytes(self, most: int) -> int:
        """Return how many bytes to move at once, so that they flow rather than come in lumps: ``most`` or fewer."""
        return most if self._burst_bytes is None else max(1, min(most, int(self._burst_bytes)))

    async def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may pass."""
        if self._bucket is None or self._burst_bytes is None:
            return
        while count > 0:
            # equal amounts: the bucket serves small ones first, and a large one would wait for ever
            amount = min(count, self.portion_bytes(count))
            await self._bucket.acquire(amount)
            count -= amount
