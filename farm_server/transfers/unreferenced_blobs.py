"""Blobs that nothing refers to yet: whose they are, and which are removed first.

A volunteer's blob is an update on its way, for the seconds until its result names it. More of them than a share of the
disk is no work, and must not keep others out: the oldest of whoever has too many give way, and where the disk is short
those of whoever has most. What researchers store is not counted.

What lay there unreferenced when the server started is a stray of its former life: checkpoints that were superseded or
never committed, updates of rounds that are over, files of removed tasks. What had been meant to go is not known any
more; it goes in time like all that nothing needs, and where the disk is short at once, before anything else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from farm_server.environment.disk_space import DiskSpace
from storage.ports.blob_store import BlobStore

_SHARE: Final = 1 / 8
"""Of the bytes that may still be taken in: what one volunteer may keep here for nothing."""
_YOUNG_SECONDS: Final = 10.0
"""A blob so young may be named in a moment; even where the disk is short it stays."""
_MOST_BLOBS: Final = 65_536
_log = structlog.get_logger(__name__)


_STRAY: Final = ""
"""The owner of blobs that an earlier life of the server left."""


class References(Protocol):
    """The ledger's query for the blobs that are needed."""

    async def referenced_digests(self) -> set[str]:
        """Return the names of all blobs that something kept still needs."""


@dataclass(frozen=True, slots=True)
class _Unused:
    owner: str
    size_bytes: int
    stored_at: float


class UnusedBlobs:
    """The book of them, the oldest first. Pure: ``now`` is in seconds."""

    def __init__(self) -> None:
        self._blobs: dict[str, _Unused] = {}

    def stored(self, owner: str, digest: str, size_bytes: int, now: float) -> None:
        """Note that a volunteer stored a blob that was not here."""
        self._blobs.pop(digest, None)
        self._blobs[digest] = _Unused(owner, size_bytes, now)
        if len(self._blobs) > _MOST_BLOBS:
            del self._blobs[next(iter(self._blobs))]

    def used(self, digest: str) -> None:
        """Note that somebody relies on a blob, or another one sent it too: it is nobody's to lose any more."""
        self._blobs.pop(digest, None)

    def owner_of(self, digest: str) -> str | None:
        """Return whose a blob is; None if it is not in the book."""
        blob = self._blobs.get(digest)
        return None if blob is None else blob.owner

    def bytes_of(self, owner: str) -> int:
        """Add up what is unused of one volunteer."""
        return sum(blob.size_bytes for blob in self._blobs.values() if blob.owner == owner)

    def surplus(self, owner: str, most_bytes: int) -> list[str]:
        """Return which of one volunteer's must go, the oldest first; the newest one may always stay."""
        own = [(digest, blob) for digest, blob in self._blobs.items() if blob.owner == owner]
        excess_bytes = sum(blob.size_bytes for _, blob in own) - most_bytes
        chosen = []
        for digest, blob in own[:-1]:
            if excess_bytes <= 0:
                break
            chosen.append(digest)
            excess_bytes -= blob.size_bytes
        return chosen

    def to_make_room(self, missing_bytes: int, now: float) -> list[str]:
        """Return what must go so that so many bytes become free, none of it young; nothing, if all is not enough.

        First the strays, then each time the oldest of whoever has most.
        """
        totals: dict[str, int] = {}
        olds: dict[str, list[str]] = {}
        for digest, blob in self._blobs.items():
            totals[blob.owner] = totals.get(blob.owner, 0) + blob.size_bytes
            if now - blob.stored_at >= _YOUNG_SECONDS:
                olds.setdefault(blob.owner, []).append(digest)
        chosen = []
        while missing_bytes > 0 and olds:
            largest = max(olds, key=lambda owner: (owner == _STRAY, totals[owner]))
            digest = olds[largest].pop(0)
            if not olds[largest]:
                del olds[largest]
            size_bytes = self._blobs[digest].size_bytes
            totals[largest] -= size_bytes
            missing_bytes -= size_bytes
            chosen.append(digest)
        return chosen if missing_bytes <= 0 else []


class UnreferencedBlobs:
    """Keeps the book, and removes what must go. On the event loop."""

    def __init__(
        self, blobs: BlobStore, references: References, disk_space: DiskSpace, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._blobs = blobs
        self._references = references
        self._disk_space = disk_space
        self._now = now
        self._began_at = time.time()
        self._unused = UnusedBlobs()

    def used(self, digests: Iterable[str]) -> None:
        """Note that somebody relies on these blobs."""
        for digest in digests:
            self._unused.used(digest)

    async def stored(self, owner: str | None, digest: str, size_bytes: int) -> None:
        """Note that a blob came which was not here, from a volunteer, or from a researcher (None)."""
        if owner is None:
            self._unused.used(digest)
            return
        self._unused.stored(owner, digest, size_bytes, self._now())
        most_bytes = int(_SHARE * (self._disk_space.spare_bytes() + self._unused.bytes_of(owner)))
        await self._remove(self._unused.surplus(owner, most_bytes), f"{owner} stored more than its share")

    async def find_strays(self) -> None:
        """Note what lay there when this began and nothing refers to; to be called once. Raises: FarmError."""
        found = await asyncio.to_thread(self._blobs.list_blobs)
        referenced = await self._references.referenced_digests()
        strays = [blob for blob in found if blob.stored_at < self._began_at and blob.digest not in referenced]
        for blob in strays:
            self._unused.stored(_STRAY, blob.digest, blob.size_bytes, self._now() - (time.time() - blob.stored_at))
        if strays:
            size_bytes = sum(blob.size_bytes for blob in strays)
            _log.info("recovery: blobs that nothing refers to", blobs=len(strays), bytes=size_bytes)

    async def make_room(self, size_bytes: int = 0) -> None:
        """See, as far as unused blobs can give way, that so many bytes may be taken in."""
        missing_bytes = (
            0 if self._disk_space.lacks(size_bytes) is None else size_bytes - self._disk_space.spare_bytes() + 1
        )
        while digests := self._unused.to_make_room(missing_bytes, self._now()):
            missing_bytes -= await self._remove(digests, "the disk is short")

    async def _remove(self, digests: Sequence[str], why: str) -> int:
        """Remove what is not needed after all, and take it out of the book; return how many bytes went."""
        if not digests:
            return 0
        strays = [digest for digest in digests if self._unused.owner_of(digest) == _STRAY]
        others = [digest for digest in digests if self._unused.owner_of(digest) != _STRAY]
        for digest in digests:
            self._unused.used(digest)
        referenced = await self._references.referenced_digests()
        now = time.time()
        # a stray that somebody has asked for since is no stray any more
        gone = await asyncio.to_thread(self._blobs.collect, referenced, now - self._began_at, now, strays)
        gone += await asyncio.to_thread(self._blobs.collect, referenced, 0.0, now + 1, others)
        _log.warning("unused blobs are removed", reason=why, blobs=gone.count, bytes=gone.bytes)
        return gone.bytes
