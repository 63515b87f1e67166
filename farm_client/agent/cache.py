"""Blobs that this machine fetched: content-addressed, bounded in size, the least recently used go first.

A blob's digest is checked while it is written and again when an entry of an earlier run is first used, so that a
damaged file is never trained on. Entries in use are pinned and never evicted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.agent.errors import CacheFull
from protocol.digests import digest_bytes, new_hasher
from protocol.errors import DigestMismatch

_HASH_CHUNK_BYTES: Final = 4 * 1024 * 1024
_TOUCH_EVERY_SECONDS: Final = 60.0
"""How exactly the order of use survives a restart; a write for every use would cost more than it is worth."""


@dataclass(slots=True)
class _Entry:
    size_bytes: int
    verified: bool
    touched_at: float = 0.0


class BlobCache:
    """A folder of immutable files named by digest. One process owns it (see ``Home.held``)."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self.used_bytes = 0
        self._scan()

    def __contains__(self, digest: str) -> bool:
        return digest in self._entries

    def digests(self, limit: int) -> tuple[str, ...]:
        """Return the digests held, the most recently used first."""
        return tuple(digest for digest, _ in zip(reversed(self._entries), range(limit), strict=False))

    def ready(self, digest: str) -> Path | None:
        """Return the file of a blob that is here and was checked in this run; marks it as used."""
        entry = self._entries.get(digest)
        if entry is None or not entry.verified:
            return None
        self._entries.move_to_end(digest)
        self._touch(digest, entry)
        return self.path(digest)

    async def find(self, digest: str) -> Path | None:
        """Return a blob's file like ``ready``, after checking one of an earlier run; a damaged one is removed."""
        entry = self._entries.get(digest)
        if entry is not None and not entry.verified:
            with self.pinned((digest,)):
                entry.verified = await asyncio.to_thread(_hashes_to, self.path(digest), digest)
            if not entry.verified:
                self._remove(digest)
        return self.ready(digest)

    def path(self, digest: str) -> Path:
        """Return where a blob's file is, or would be."""
        return self._root / digest[:2] / digest

    def partial_path(self, digest: str) -> Path:
        """Return where a blob is written while it is fetched; ``adopt`` moves it into place."""
        return self._root / f"{digest}.part"

    def put(self, digest: str, data: bytes) -> Path:
        """Keep a small blob that rode inside a message.

        Raises: DigestMismatch if it is not what its name says; CacheFull.
        """
        if digest_bytes(data) != digest:
            raise DigestMismatch(f"an inline blob does not hash to {digest}; the sender damaged it")
        self.make_room(len(data))
        partial = self.partial_path(digest)
        partial.write_bytes(data)
        return self.adopt(digest, len(data))

    def adopt(self, digest: str, size_bytes: int) -> Path:
        """Take in the finished partial file, whose digest the writer has checked."""
        return self._take_in(self.partial_path(digest), digest, size_bytes)

    async def adopt_file(self, digest: str, file: Path) -> Path:
        """Move in a file that another process of this machine made, if it is what its name says.

        Raises: DigestMismatch, CacheFull, OSError; the file then stays where it is.
        """
        if not await asyncio.to_thread(_hashes_to, file, digest):
            raise DigestMismatch(f"the file that was made for blob {digest[:12]} has another digest")
        size_bytes = (await asyncio.to_thread(file.stat)).st_size
        self.make_room(size_bytes)
        return self._take_in(file, digest, size_bytes)

    def make_room(self, size_bytes: int) -> None:
        """Evict until a blob of this size fits.

        Raises: CacheFull if it cannot fit beside what is in use.
        """
        if size_bytes > self._max_bytes - self._pinned_bytes():
            raise CacheFull(
                f"a blob of {size_bytes} bytes does not fit into the cache of {self._max_bytes} bytes"
                f" ({self._pinned_bytes()} are in use); raise --cache-bytes"
            )
        for digest in [d for d in self._entries if not self._pins[d]]:
            if self.used_bytes + size_bytes <= self._max_bytes:
                return
            self._remove(digest)

    @contextmanager
    def pinned(self, digests: Iterable[str]) -> Iterator[None]:
        """Keep these blobs, here or yet to come, from being evicted."""
        held = tuple(digests)
        self._pins.update(held)
        try:
            yield
        finally:
            self._pins.subtract(held)
            for digest in held:
                if self._pins[digest] <= 0:
                    del self._pins[digest]

    def _take_in(self, file: Path, digest: str, size_bytes: int) -> Path:
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True)
        file.replace(path)
        self._forget(digest)
        self._entries[digest] = _Entry(size_bytes, verified=True, touched_at=time.monotonic())
        self.used_bytes += size_bytes
        return path

    def _pinned_bytes(self) -> int:
        return sum(self._entries[digest].size_bytes for digest in self._pins if digest in self._entries)

    def _touch(self, digest: str, entry: _Entry) -> None:
        now = time.monotonic()
        if now - entry.touched_at > _TOUCH_EVERY_SECONDS:
            entry.touched_at = now
            os.utime(self.path(digest))

    def _remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)
        self._forget(digest)

    def _forget(self, digest: str) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self.used_bytes -= entry.size_bytes

    def _scan(self) -> None:
        """Read what an earlier run left, in the order of use; half-fetched files are of no use any more."""
        for partial in self._root.glob("*.part"):
            partial.unlink()
        found = [(path, path.stat()) for path in self._root.glob("[0-9a-f][0-9a-f]/*")]
        for path, stat in sorted(found, key=lambda pair: pair[1].st_mtime):
            self._entries[path.name] = _Entry(stat.st_size, verified=False)
            self.used_bytes += stat.st_size
        self.make_room(0)


def _hashes_to(path: Path, digest: str) -> bool:
    hasher = new_hasher()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_HASH_CHUNK_BYTES):
                hasher.update(chunk)
    except OSError:
        return False
    return hasher.hexdigest() == digest
