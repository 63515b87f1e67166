"""Bandwidth limits, each shared by all transfers of a process in its direction; they may change at any time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from farm_client.transfer.token_bucket import TokenBucket


def _nothing_is_measured() -> None:
    """Nobody needs to know that something waited."""


class RateLimit:
    """Lets at most ``bytes_per_second`` pass, in the order of asking; None lets everything pass.

    What waits is paced by the event loop; the properties may be read from any thread.
    """

    def __init__(self, bytes_per_second: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds."""
        self._now = now
        self._bucket = TokenBucket.full(bytes_per_second, now()) if bytes_per_second else None
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.on_wait: Callable[[], None] = _nothing_is_measured
        """Called when something begins to wait: the speed of what moves now is the limit's, and not the link's."""

    @property
    def bytes_per_second(self) -> float | None:
        """Return the limit; None if there is none."""
        bucket = self._bucket
        return None if bucket is None else bucket.rate

    @property
    def is_limited(self) -> bool:
        """Whether anything ever waits."""
        return self._bucket is not None

    def change(self, bytes_per_second: float | None) -> None:
        """Go on with another limit, which holds at once for what waits already."""
        if not bytes_per_second:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = TokenBucket.full(bytes_per_second, self._now())
        else:
            self._bucket.change(bytes_per_second, self._now())
        self._changed.set()

    def portion_bytes(self, most: int) -> int:
        """Return how many bytes to move at once, so that they flow rather than come in lumps: ``most`` or fewer."""
        bucket = self._bucket
        return most if bucket is None else max(1, min(most, int(bucket.burst_bytes)))

    async def take(self, count: int) -> None:
        """Wait until ``count`` more bytes may pass."""
        if self._bucket is None:
            return
        async with self._turn:
            while count > 0 and (bucket := self._bucket) is not None:
                # in portions: one who leaves in the midst of much has used up no more than has passed
                amount = min(count, self.portion_bytes(count))
                if (seconds := bucket.wait_seconds(amount, self._now())) > 0:
                    await self._wait(seconds)
                else:
                    bucket.take(amount, self._now())
                    count -= amount

    def charge(self, count: int) -> None:
        """Count bytes that have passed without waiting; who takes some next waits for them too."""
        if self._bucket is not None:
            self._bucket.take(count, self._now())

    async def _wait(self, seconds: float) -> None:
        self.on_wait()
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
