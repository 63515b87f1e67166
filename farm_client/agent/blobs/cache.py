"""Blobs that this machine fetched: content-addressed, bounded in size, what costs least to bring back goes first.

    <root>/ab/ab12...       a blob, read-only: executors map it
    <root>/ab12....part     what came of a blob so far, and beside it which bytes that are
    <root>/uses             what each blob was used for, and what it cost

A blob's digest is checked while it is written and again when an entry of an earlier run is first used; at every use
the file must look as it did then. So a damaged file is never trained on: it is removed, and fetched again. Entries in
use are pinned and never evicted; unfinished ones count with their whole size. The cache takes no more than its limit,
and no more than the disk has free, less a reserve. Other programs fill that disk too: a write may still find it full.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from farm_client.agent.blobs.cache_book import BlobNote, CacheBook
from farm_client.agent.blobs.cache_entry import CacheEntry, Cleared
from farm_client.agent.blobs.cache_files import (
    Look,
    copy_if_sound,
    look_if_sound,
    look_of,
    mismatch,
    protect,
    scan,
    touch,
)
from farm_client.agent.blobs.cache_stats import CacheStats
from farm_client.agent.blobs.disk_space import DiskBudget, is_full, stored_bytes
from farm_client.agent.blobs.eviction import Esteem, cheapest_first
from farm_client.agent.errors import CacheFull, HomeGone
from farm_client.transfer.partial_file import remove_partial
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch
from protocol.wording import sized

_TOUCH_EVERY_SECONDS: Final = 60.0
"""How exactly the order of use survives a restart; a write for every use would cost more than it is worth."""


def say_nothing(_text: str) -> None:
    """Nobody reads along."""


class BlobCache:
    """A folder of immutable files named by digest. One process owns it (see ``HomeFolder.held``)."""

    def __init__(self, root: Path, max_bytes: int, note: Callable[[str], None] = say_nothing) -> None:
        """``note`` gets a sentence on what was damaged."""
        self.root = root
        self._max_bytes = max_bytes
        self._note = note
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._hits = self._misses = self._served_bytes = 0
        self._evictions = self._evicted_bytes = self._damaged = 0
        self.used_bytes = 0
        self._disk = DiskBudget(root)
        self.book = CacheBook(root)
        self._inflation = self.book.read.inflation
        self._take_over()

    def __contains__(self, digest: str) -> bool:
        """Whether the blob is here, sound or not; it does not count as a use."""
        entry = self._entries.get(digest)
        return entry is not None and entry.whole

    def digests(self, limit: int) -> tuple[str, ...]:
        """Return the digests held, the most recently used first."""
        whole = (digest for digest, entry in reversed(self._entries.items()) if entry.whole)
        return tuple(digest for digest, _ in zip(whole, range(limit), strict=False))

    def stats(self) -> CacheStats:
        """Return how it fares."""
        return CacheStats(
            entries=sum(entry.whole for entry in self._entries.values()),
            used_bytes=self.used_bytes,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
            served_bytes=self._served_bytes,
            evictions=self._evictions,
            evicted_bytes=self._evicted_bytes,
            damaged=self._damaged,
        )

    def ready(self, digest: str) -> Path | None:
        """Return the file of a blob that was found sound in this run and looks the same; marks it as used."""
        entry = self._entries.get(digest)
        if entry is None or entry.look is None:
            return None
        if look_of(self.path(digest)) != entry.look:
            entry.look = None  # ``find`` reads it again
            return None
        self._hits += 1
        entry.hits += 1
        self._served_bytes += entry.size_bytes
        self._mark_used(digest, entry)
        return self.path(digest)

    async def find(self, digest: str) -> Path | None:
        """Return a blob's file like ``ready``, after reading one that is not known to be sound; a damaged one goes."""
        here, entry = self.ready(digest), self._entries.get(digest)
        if here is None and entry is not None and entry.whole:
            with self.pinned((digest,)):
                entry.look = await asyncio.to_thread(look_if_sound, self.path(digest), digest)
            if self._entries.get(digest) is entry:  # else somebody saw the damage too, and has fetched it again
                self._judge(digest, entry)
            here = self.ready(digest)
        self._misses += here is None
        return here

    def path(self, digest: str) -> Path:
        """Return where a blob's file is, or would be."""
        return self.root / digest[:2] / digest

    def partial_path(self, digest: str) -> Path:
        """Return where a blob is written while it is fetched; ``adopt`` moves it into place."""
        return self.root / f"{digest}.part"

    def reserve(self, digest: str, size_bytes: int, sparing_seconds: float = 0.0) -> Path:
        """Make room for a blob that is about to be fetched, and return ``partial_path``; pin it first.

        What an earlier try left there is kept. Nothing that was used within ``sparing_seconds`` is evicted for it.
        Raises: CacheFull, DiskFull, HomeGone.
        """
        entry = self._entries.get(digest)
        if entry is None or entry.whole or entry.size_bytes != size_bytes:
            self._remove(digest)
            self.make_room(size_bytes, sparing_seconds)
            entry = self._add(digest, size_bytes)
            entry.whole = False
        self._mark_used(digest, entry)
        return self.partial_path(digest)

    def give_up(self, digest: str) -> None:
        """The blob is not being fetched any more: keep what came for another try, or forget it if nothing did."""
        entry = self._entries.get(digest)
        if entry is not None and not entry.whole and not self.partial_path(digest).exists():
            self._forget(digest)

    def discard(self, digest: str) -> None:
        """Remove what came of a blob that is not whole."""
        if digest not in self:
            self._remove(digest)

    def adopt(self, digest: str, size_bytes: int, fetch_seconds: float | None = None) -> Path:
        """Take in the finished partial file, whose digest the writer has checked, and how long it took to come."""
        return self._take_in(self.partial_path(digest), digest, size_bytes, fetch_seconds)

    async def adopt_file(self, digest: str, path: Path) -> Path:
        """Take in a copy of a file that was made on this machine, if that hashes to ``digest``.

        A copy, because whoever made the file may have it open still, and change it after it was looked at.

        Raises: DigestMismatch; CacheFull, DiskFull, HomeGone; OSError.
        """
        look = await asyncio.to_thread(look_if_sound, path, digest)
        if look is None:
            raise mismatch(digest)  # nothing is evicted for it
        with self.pinned((digest,)):
            if digest not in self:
                self.make_room(look.size_bytes)
            copied = self._incoming_path(digest)
            try:
                look = await asyncio.to_thread(copy_if_sound, path, copied, digest)
            except BaseException:
                copied.unlink(missing_ok=True)
                raise
        if look is None:
            raise mismatch(digest)
        return self._take_in(copied, digest, look.size_bytes)

    async def adopt_brought(self, digest: str, size_bytes: int, bring: Callable[[Path], Look | None]) -> bool:
        """Take in what ``bring`` puts at the path that it gets, in a thread, and finds sound; return whether it did.

        Raises: CacheFull, DiskFull, HomeGone; what ``bring`` raises.
        """
        self.make_room(size_bytes)
        incoming = self._incoming_path(digest)
        look = await asyncio.to_thread(bring, incoming)
        if look is not None:
            self._take_in(incoming, digest, look.size_bytes)
        return look is not None

    def put(self, digest: str, data: bytes) -> Path:
        """Keep a small blob that rode inside a message.

        Raises: DigestMismatch if it is not what its name says; CacheFull, DiskFull, HomeGone; OSError.
        """
        if digest_bytes(data) != digest:
            raise DigestMismatch(f"a blob inside a message does not hash to {digest}; the sender damaged it")
        self.make_room(len(data))
        incoming = self._incoming_path(digest)
        while True:
            try:
                incoming.write_bytes(data)
                return self._take_in(incoming, digest, len(data))
            except OSError as error:
                self.evict_after(error, len(data))

    def make_room(self, size_bytes: int, sparing_seconds: float = 0.0) -> None:
        """Evict until a blob of this size fits; nothing is evicted if that would not be enough.

        Raises: CacheFull if it cannot fit beside what is in use, or was within ``sparing_seconds``; DiskFull if the
            disk has no room for it even without the rest; HomeGone.
        """
        over_bytes = self.used_bytes + size_bytes - self._max_bytes
        if over_bytes <= 0 and size_bytes <= self._room_bytes():
            return
        idle = self._idle(sparing_seconds)
        idle_bytes = sum(entry.size_bytes for entry in idle.values())
        if over_bytes > idle_bytes:
            raise CacheFull(
                f"a blob of {sized(size_bytes)} does not fit into the cache of {sized(self._max_bytes)}"
                f" ({self.used_bytes - idle_bytes} are in use); raise --cache-bytes"
            )
        lacking_bytes = size_bytes - self._room_bytes()
        if lacking_bytes > idle_bytes:
            raise self._disk.full(size_bytes)
        self._evict(idle, max(over_bytes, lacking_bytes))

    def evict_after(self, error: OSError, size_bytes: int) -> None:
        """Make way for a write that found the disk full, so that it may be tried again.

        Raises: DiskFull if there is nothing to evict; ``error`` itself if it says something else of the disk.
        """
        if not is_full(error):
            raise error
        if not self.evict(size_bytes):
            raise self._disk.full(size_bytes) from error

    def resize(self, max_bytes: int) -> None:
        """Keep no more than this from now on; what is in use and too much goes when something else is to come."""
        self._max_bytes = max_bytes
        self._evict(self._idle(), self.used_bytes - max_bytes)

    def evict(self, size_bytes: int) -> int:
        """Evict so much, or as much as can be, for whatever is written on the same disk; return how much it was."""
        return self._evict(self._idle(), max(1, size_bytes))

    def lack(self) -> str | None:
        """Return why nothing can be kept now: what last found no room on the disk would find none still. Else None.

        Raises: HomeGone.
        """
        return self._disk.lack(self._room_bytes() + sum(entry.size_bytes for entry in self._idle().values()))

    @contextmanager
    def pinned(self, digests: Iterable[str], task_id: str = "") -> Iterator[None]:
        """Keep these blobs, here or yet to come, from being evicted; ``task_id``: for whom they are used."""
        names = list(digests)
        self._pins.update(names)
        try:
            yield
        finally:
            self._label(names, task_id)
            self._pins.subtract(names)
            for digest in names:
                if self._pins[digest] <= 0:
                    del self._pins[digest]

    def clear(self, task_id: str | None = None) -> Cleared:
        """Remove what nobody uses: of one task, what no other task used too; without one, all of it."""
        removed = removed_bytes = in_use = 0
        for digest, entry in tuple(self._entries.items()):
            if task_id is not None and task_id not in entry.tasks:
                continue
            entry.tasks = tuple(user for user in entry.tasks if user != task_id)
            if task_id is not None and entry.tasks:
                continue  # another task's too
            if self._pins[digest]:
                in_use += 1
                continue
            removed += 1
            removed_bytes += entry.size_bytes
            self._remove(digest)
        self.save_book()
        return Cleared(removed, removed_bytes, in_use)

    def save_book(self) -> None:
        """Write down what is known of the blobs, for the next run and for `farm-client cache show`."""
        self.book.save({digest: entry.note() for digest, entry in self._entries.items()}, self._inflation)

    def _label(self, digests: Iterable[str], task_id: str) -> None:
        for digest in digests if task_id else ():
            entry = self._entries.get(digest)
            if entry is not None:
                entry.used_by(task_id)
        if self.book.is_due():
            self.save_book()

    def _idle(self, sparing_seconds: float = 0.0) -> dict[str, CacheEntry]:
        """Return what may be evicted."""
        used_before = time.monotonic() - sparing_seconds
        return {d: e for d, e in self._entries.items() if not self._pins[d] and e.standing.used_at <= used_before}

    def _evict(self, idle: dict[str, CacheEntry], wanted_bytes: int) -> int:
        """Remove entries until so many bytes, or all of them, are gone; return how many are."""
        freed_bytes = 0
        if wanted_bytes <= 0:
            return freed_bytes
        for digest, worth in cheapest_first({d: e.standing for d, e in idle.items()}, time.monotonic()):
            if freed_bytes >= wanted_bytes:
                break
            self._inflation = max(self._inflation, worth)
            freed_bytes += idle[digest].size_bytes
            self._evictions += 1
            self._evicted_bytes += idle[digest].size_bytes
            self._remove(digest)
        return freed_bytes

    def _room_bytes(self) -> int:
        """Return what the disk may still be given, less what is promised to the blobs that are being fetched."""
        unfinished = [(digest, entry.size_bytes) for digest, entry in self._entries.items() if not entry.whole]
        promised_bytes = sum(max(0, size - stored_bytes(self.partial_path(digest))) for digest, size in unfinished)
        return self._disk.room_bytes() - promised_bytes

    def _take_in(self, incoming: Path, digest: str, size_bytes: int, fetch_seconds: float | None = None) -> Path:
        protect(incoming)
        path = self.path(digest)
        path.parent.mkdir(exist_ok=True)
        self._forget(digest)
        incoming.replace(path)
        entry = self._add(digest, size_bytes)
        entry.standing.fetch_seconds = fetch_seconds
        entry.look, entry.touched_at = look_of(path), time.monotonic()
        return path

    def _incoming_path(self, digest: str) -> Path:
        return self.root / f"{digest}.new"

    def _mark_used(self, digest: str, entry: CacheEntry) -> None:
        self._entries.move_to_end(digest)
        now = time.monotonic()
        entry.standing.use(now, self._inflation)
        if entry.look is not None and now - entry.touched_at > _TOUCH_EVERY_SECONDS:
            entry.touched_at = now
            touch(self.path(digest), entry.look, time.time_ns())

    def _judge(self, digest: str, entry: CacheEntry) -> None:
        """Keep an entry that was found sound, remove one that was not."""
        if entry.look is not None:
            protect(self.path(digest))
            return
        self._damaged += 1
        self._note(f"the cached copy of blob {digest[:12]} is damaged or gone; it will be fetched again")
        self._remove(digest)

    def _add(self, digest: str, size_bytes: int) -> CacheEntry:
        entry = self._entries[digest] = CacheEntry(Esteem(size_bytes, time.monotonic(), base=self._inflation))
        self.used_bytes += size_bytes
        return entry

    def _remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)
        remove_partial(self.partial_path(digest))
        self._forget(digest)

    def _forget(self, digest: str) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self.used_bytes -= entry.size_bytes

    def _take_over(self) -> None:
        """Go on with what an earlier run left."""
        now, nothing = time.monotonic(), BlobNote()
        for idle_seconds, digest, size_bytes, whole in scan(self.root):
            known = self.book.read.blobs.get(digest, nothing)
            standing = Esteem(size_bytes, now - idle_seconds, known.fetch_seconds, known.popularity, known.base)
            self._entries[digest] = CacheEntry(standing, whole, known.hits, known.tasks)
            self.used_bytes += size_bytes
        with suppress(HomeGone):
            self._evict(self._idle(), max(self.used_bytes - self._max_bytes, -self._room_bytes()))
