"""Fetches a blob from the cache, its message, or the farm; requests for the same blob share one download.

What will be needed later is fetched ahead, one blob at a time, while nobody waits for another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial as bound
from pathlib import Path
from typing import Final, Protocol, Self
from weakref import WeakValueDictionary

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_files import Look
from farm_client.agent.blobs.transfers import Transfers
from farm_client.transfer.partial_file import PartialFile
from protocol.errors import FarmError
from protocol.tasks import BlobRef

_MAX_WISHES: Final = 256
_SPARING_SECONDS: Final = 300.0
"""What was used within this time is not evicted for something that may be needed later."""

_TELLING_SHARE: Final = 0.25
"""A download that had less of the blob to bring does not tell what all of it costs."""


@dataclass(slots=True)
class _Running:
    """A download and how many wait for it; nobody does for one that is fetched ahead."""

    ref: BlobRef
    sparing_seconds: float = 0.0
    waiters: int = 0
    task: asyncio.Task[Path] = field(init=False)


class SharedBlobs(Protocol):
    """Blobs that another agent of this machine has; calls block. See ``sharing.borrower.HostBlobs``."""

    def bring(self, digest: str, path: Path) -> Look | None:
        """Put a blob at a path, sound; None if it is not to be had. Raises: OSError."""

    def end_all_but(self, is_kept: Callable[[str], bool]) -> None:
        """Give back what is not kept any more."""

    def close(self) -> None:
        """Give everything back."""


class Fetcher:
    """Brings blobs into the cache. Requests for one digest at the same time share its download.

    At the end of its context nothing is fetched ahead any more; whoever still waits in ``fetch`` is cancelled first.
    """

    def __init__(self, cache: BlobCache, transfers: Transfers, shared: SharedBlobs | None = None) -> None:
        """``shared``: who is asked for a blob before the farm is."""
        self.cache = cache
        self._transfers = transfers
        self._shared = shared
        self._one_asks = asyncio.Lock()
        self._running: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[Path]] = set()
        """With those that were stopped, and are closing their files."""
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """A download that was stopped may still be closing its file when the next one of that blob begins."""
        self._wishes: dict[str, BlobRef] = {}
        self._ahead: asyncio.Task[None] | None = None
        self._waiting = 0
        self._quiet = asyncio.Event()
        """Set while nobody waits for a download."""
        self._quiet.set()
        self.arrived_bytes: dict[str, int] = {}
        """By the digest of each running download."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_prefetching()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._ahead is not None:
            await self._ahead
        if self._shared is not None:
            self._shared.close()
        self.cache.save_book()

    async def fetch(self, ref: BlobRef) -> Path:
        """Return the blob's file in the cache; pin its digest while you use it.

        Raises: what ``Transfers.download`` and ``BlobCache`` raise.
        """
        here = await self.cache.find(ref.digest)
        if here is None and ref.carried is not None:
            here = self.cache.put(ref.digest, ref.carried)
        return here if here is not None else await self._share(ref)

    def note_carried(self, refs: Iterable[BlobRef]) -> None:
        """Count the bytes that came along with these references among those that were received."""
        self._transfers.came_in_message(sum(len(ref.carried) for ref in refs if ref.carried is not None))

    def prefetch(self, refs: Iterable[BlobRef]) -> None:
        """Prefetch these, before older wishes, in the background while no fetch waits for a download.

        Nothing in use, or used in the last minutes, is evicted for it. What cannot be had is left to the ``fetch`` that
        needs it, which says why; a ``fetch`` of what is on its way joins it.
        """
        wished = {ref.digest: ref for ref in refs if ref.carried is None and ref.digest not in self.cache}
        older = [(digest, ref) for digest, ref in self._wishes.items() if digest not in wished]
        self._wishes = wished | dict(older[: max(0, _MAX_WISHES - len(wished))])
        if self._wishes and (self._ahead is None or self._ahead.done()):
            self._ahead = asyncio.get_running_loop().create_task(self._fetch_ahead())

    def stop_prefetching(self) -> None:
        """Stop prefetching; what has come is kept."""
        self._wishes = {}
        self._stop_idle()

    async def _fetch_ahead(self) -> None:
        while self._wishes:
            await self._quiet.wait()
            for digest, ref in tuple(self._wishes.items())[:1]:
                if await self._came(ref):
                    self._wishes.pop(digest, None)

    async def _came(self, ref: BlobRef) -> bool:
        """Fetch a blob ahead; return False if that was stopped, so that it is worth another try."""
        if ref.digest in self.cache:
            return True
        running = self._running.get(ref.digest) or self._begin(ref, _SPARING_SECONDS)
        await asyncio.wait([running.task])
        if running.task.cancelled():
            return False
        error = running.task.exception()
        if error is not None and not isinstance(error, FarmError | OSError):
            raise error
        return True

    async def _share(self, ref: BlobRef) -> Path:
        running = self._running.get(ref.digest)
        if running is None or running.task.done():
            running = self._begin(ref)
        running.sparing_seconds = 0.0
        running.waiters += 1
        self._waiting += 1
        self._quiet.clear()
        self._stop_idle()
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiters -= 1
            self._waiting -= 1
            if not running.waiters:  # the last one to wait has left, perhaps because it was cancelled
                self._stop(running)
            if not self._waiting:
                self._quiet.set()

    def _begin(self, ref: BlobRef, sparing_seconds: float = 0.0) -> _Running:
        running = self._running[ref.digest] = _Running(ref, sparing_seconds)
        running.task = asyncio.get_running_loop().create_task(self._download(running))
        self._tasks.add(running.task)
        running.task.add_done_callback(self._tasks.discard)
        running.task.add_done_callback(lambda _: self._forget(running))
        return running

    def _stop(self, running: _Running) -> None:
        self._forget(running)
        running.task.cancel()

    def _stop_idle(self) -> None:
        """Stop the downloads that nobody waits for."""
        for running in [running for running in self._running.values() if not running.waiters]:
            self._stop(running)

    def _forget(self, running: _Running) -> None:
        if self._running.get(running.ref.digest) is running:
            del self._running[running.ref.digest]

    async def _download(self, running: _Running) -> Path:
        digest, size_bytes = running.ref.digest, running.ref.size_bytes
        lock = self._writing.setdefault(digest, asyncio.Lock())
        async with lock:
            with self.cache.pinned((digest,)):
                while digest not in self.cache:
                    try:
                        if await self._was_here(digest, size_bytes):
                            break
                        seconds = await self._pour(digest, size_bytes, running.sparing_seconds)
                        self.cache.adopt(digest, size_bytes, seconds)
                    except OSError as error:  # other programs fill the disk too
                        self.cache.evict_after(error, size_bytes)
                return self.cache.path(digest)

    async def _was_here(self, digest: str, size_bytes: int) -> bool:
        """Take a blob over from another agent of this machine; False if it has to be downloaded."""
        if self._shared is None or self.cache.partial_path(digest).exists():
            return False
        async with self._one_asks:
            await asyncio.to_thread(self._shared.end_all_but, self.cache.__contains__)
            return await self.cache.adopt_brought(digest, size_bytes, bound(self._shared.bring, digest))

    async def _pour(self, digest: str, size_bytes: int, sparing_seconds: float) -> float | None:
        """Download into the blob's partial file; return how long all of it takes, None if too little was left to say.

        Of what an OSError ends nothing is kept.
        """
        partial = PartialFile(self.cache.reserve(digest, size_bytes, sparing_seconds), size_bytes)
        self.arrived_bytes[digest] = present_bytes = partial.present_bytes
        began_at = time.monotonic()
        try:
            await self._transfers.download(digest, partial, lambda count: self.arrived_bytes.__setitem__(digest, count))
        except OSError:  # a full disk is not to be kept full by half a blob
            self.cache.discard(digest)
            raise
        finally:
            del self.arrived_bytes[digest]
            self.cache.give_up(digest)
        share = 1.0 - present_bytes / max(1, size_bytes)
        return (time.monotonic() - began_at) / share if share >= _TELLING_SHARE else None
