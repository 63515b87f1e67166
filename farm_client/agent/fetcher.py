"""One way to a blob: from the cache, from the message it rode in, or from the farm; shared by all who ask."""

from __future__ import annotations

import asyncio
from pathlib import Path

from farm_client.agent.cache import BlobCache
from farm_client.agent.transfers import Transfers
from protocol.errors import DigestMismatch
from protocol.tasks import BlobRef


class Fetcher:
    """Brings blobs into the cache. Requests for one digest at the same time share its download."""

    def __init__(self, cache: BlobCache, transfers: Transfers) -> None:
        self.cache = cache
        self._transfers = transfers
        self._running: dict[str, asyncio.Task[Path]] = {}
        self._waiters: dict[str, int] = {}
        self.arrived_bytes: dict[str, int] = {}
        """By the digest of each running download."""

    async def fetch(self, ref: BlobRef) -> Path:
        """Return the blob's file in the cache; pin its digest while you use it.

        Raises: what ``Transfers.download`` and ``BlobCache`` raise.
        """
        here = self.cache.ready(ref.digest)
        if here is None:
            here = await self.cache.find(ref.digest)
        if here is None and ref.inline is not None:
            here = self.cache.put(ref.digest, ref.inline)
        return here if here is not None else await self._share(ref)

    async def _share(self, ref: BlobRef) -> Path:
        running = self._running.get(ref.digest)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._download(ref))
            self._running[ref.digest] = running
        self._waiters[ref.digest] = self._waiters.get(ref.digest, 0) + 1
        try:
            return await asyncio.shield(running)
        finally:
            self._waiters[ref.digest] -= 1
            if not self._waiters[ref.digest]:  # the last one to wait has left, perhaps because it was cancelled
                del self._waiters[ref.digest]
                del self._running[ref.digest]
                running.cancel()

    async def _download(self, ref: BlobRef) -> Path:
        self.cache.make_room(ref.size_bytes)
        partial = self.cache.partial_path(ref.digest)
        self.arrived_bytes[ref.digest] = 0
        try:
            size_bytes = await self._transfers.download(
                ref.digest, partial, lambda count: self.arrived_bytes.__setitem__(ref.digest, count)
            )
            if size_bytes != ref.size_bytes:
                raise DigestMismatch(f"blob {ref.digest[:12]} has {size_bytes} bytes and not {ref.size_bytes}")
            return self.cache.adopt(ref.digest, size_bytes)
        finally:
            del self.arrived_bytes[ref.digest]
            partial.unlink(missing_ok=True)
