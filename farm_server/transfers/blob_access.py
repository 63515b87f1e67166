"""Whole blobs for the routes: found wherever they are, and stored while there is room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from farm_server.environment.disk_space import DiskSpace, Promise
from farm_server.transfers.memory_blobs import MemoryBlobs
from farm_server.transfers.unreferenced_blobs import UnreferencedBlobs
from protocol.errors import Unavailable
from storage.errors import BlobTooLarge
from storage.ports.blob_store import BlobStore

_YOUNG_SECONDS: Final = 1.0
"""To renew a blob costs a sync: once is enough for all the ranges of a download."""


class BlobAccess:
    """``refuses`` says why nothing is taken in now, or None. ``max_blob_bytes``: the largest that is taken in."""

    def __init__(
        self,
        blobs: BlobStore,
        memory: MemoryBlobs,
        disk_space: DiskSpace,
        unreferenced: UnreferencedBlobs,
        *,
        refuses: Callable[[], str | None],
        max_blob_bytes: int,
    ) -> None:
        self._blobs = blobs
        self._memory = memory
        self._disk_space = disk_space
        self._unreferenced = unreferenced
        self._refuses = refuses
        self._max_blob_bytes = max_blob_bytes

    async def find(self, digest: str) -> bytes | Path:
        """Return a blob's file, or its bytes where it is in memory only. Raises: NotFound."""
        if (in_memory := self._memory.pinned(digest)) is not None:  # a version that is not durable yet
            return in_memory
        path = self._blobs.path(digest)
        if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
            # who asks for it may rely on it in a moment: it counts as just stored
            await asyncio.to_thread(self._blobs.renew, digest)
        return path

    async def store(
        self, digest: str, announced_bytes: int | None, body: AbstractAsyncContextManager[AsyncIterator[bytes]]
    ) -> int | None:
        """Store a body; return its size, or None where it was here already. ``announced_bytes``: None if unknown.

        Raises: BlobTooLarge; Unavailable; DigestMismatch.
        """
        if announced_bytes is not None and announced_bytes > self._max_blob_bytes:
            limit = self._max_blob_bytes
            raise BlobTooLarge(f"the blob is larger than the {limit} bytes that are allowed; send a smaller one")
        await self._unreferenced.make_room(announced_bytes or 0)
        if (reason := self._refuses()) is not None:
            raise Unavailable(reason)
        with self._disk_space.promised(announced_bytes) as promise:
            async with body as chunks:
                if await asyncio.to_thread(self._blobs.renew, digest):
                    async for chunk in chunks:
                        promise.took(len(chunk))  # an answer before the end of the body would break the connection
                    self.used([digest])
                    return None
                ref = await self._blobs.put_stream(digest, _kept(chunks, promise), self._max_blob_bytes)
        return ref.size_bytes

    async def stored_by(self, owner: str | None, digest: str, size_bytes: int) -> None:
        """Note whose a new blob is, until something refers to it; None: a researcher's. Others' may have to go."""
        await self._unreferenced.stored(owner, digest, size_bytes)

    def used(self, digests: Iterable[str]) -> None:
        """Note that somebody relies on blobs that were here."""
        self._unreferenced.used(digests)


async def _kept(chunks: AsyncIterator[bytes], promise: Promise) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        promise.took(len(chunk))
        yield chunk
