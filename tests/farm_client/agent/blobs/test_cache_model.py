"""The cache beside a model of it: an ordered list of names and sizes. Whatever is done, both hold the same."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.disk_space import DiskBudget
from farm_client.agent.blobs.eviction import cheapest_first
from farm_client.agent.errors import CacheFull, DiskFull
from farm_client.transfer.partial_file import PartialFile
from protocol.digests import digest_bytes

LIMIT = 100
CONTENTS = {digest_bytes(data): data for data in (bytes([n]) * size for n, size in enumerate((20, 30, 45, 101)))}
names = st.sampled_from(sorted(CONTENTS))


class Cache(RuleBasedStateMachine):
    """``model``: size and whether it is whole, by name, the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.cache = BlobCache(self.root, LIMIT)
        self.model: OrderedDict[str, tuple[int, bool]] = OrderedDict()
        self.pins: set[str] = set()
        self.uses = ExitStack()
        self.evicted = 0

    def teardown(self) -> None:
        self.uses.close()
        self.folder.cleanup()

    def _cheapest_first(self) -> list[str]:
        """What is not in use, in the order of the rule, which has its own tests."""
        standings = {name: self.cache._entries[name].standing for name in self.model if name not in self.pins}
        return [name for name, _ in cheapest_first(standings, time.monotonic())]

    def _room_for(self, size: int) -> bool:
        """Evict in the model as the cache should; return whether it can be made to fit."""
        over = sum(held for held, _ in self.model.values()) + size - LIMIT
        idle = self._cheapest_first()
        if over > sum(self.model[name][0] for name in idle):
            return False
        while over > 0:
            over -= self.model.pop(idle.pop(0))[0]
            self.evicted += 1
        return True

    @initialize()
    def begin(self) -> None:
        """An empty cache has no order: two blobs are here from the start."""
        for name in sorted(CONTENTS, key=lambda name: len(CONTENTS[name]))[:2]:
            self.put(name)

    @rule(name=names)
    def put(self, name: str) -> None:
        data = CONTENTS[name]
        if name in self.model:
            return
        if self._room_for(len(data)):
            assert self.cache.put(name, data).read_bytes() == data
            self.model[name] = len(data), True
        else:
            with pytest.raises(CacheFull, match="--cache-bytes"):
                self.cache.put(name, data)

    @rule(name=names)
    def use(self, name: str) -> None:
        found = asyncio.run(self.cache.find(name))
        if self.model.get(name, (0, False))[1]:
            assert found is not None
            assert found.read_bytes() == CONTENTS[name]
            self.model.move_to_end(name)
        else:
            assert found is None

    @rule(name=names, share=st.sampled_from((0.0, 0.5, 1.0)))
    def fetch(self, name: str, share: float) -> None:
        """Reserve, write a share of it, and take it in if it is all."""
        data = CONTENTS[name]
        if self.model.get(name, (0, False))[1]:
            return
        if name not in self.model and not self._room_for(len(data)):
            with pytest.raises(CacheFull):
                self.cache.reserve(name, len(data))
            return
        began_anew = name not in self.model
        self.model[name] = len(data), False
        self.model.move_to_end(name)
        partial = PartialFile(self.cache.reserve(name, len(data)), len(data))
        partial.write(0, data[: int(share * len(data))])
        if share == 1.0:
            partial.finish()
            partial.close()
            self.cache.adopt(name, len(data))
            self.model[name] = len(data), True
        else:
            partial.close()
            self.cache.give_up(name)
            if began_anew and not share:
                del self.model[name]  # nothing came

    @rule(name=names)
    def discard(self, name: str) -> None:
        """Only what is not whole goes."""
        self.cache.discard(name)
        if not self.model.get(name, (0, True))[1]:
            del self.model[name]

    @rule(name=names)
    def pin(self, name: str) -> None:
        if name not in self.pins:
            self.pins.add(name)
            self.uses.enter_context(self.cache.pinned((name,)))

    @rule(size=st.integers(0, 60))
    def evict(self, size: int) -> None:
        idle = self._cheapest_first()
        freed = self.cache.evict(size)
        gone = 0
        while idle and gone < max(1, size):
            gone += self.model.pop(idle.pop(0))[0]
            self.evicted += 1
        assert freed == gone

    @rule(name=names)
    def damage(self, name: str) -> None:
        """Another program writes into an entry: it is noticed at the next use, removed, and fetched again."""
        if not self.model.get(name, (0, False))[1]:
            return
        path = self.cache.path(name)
        path.chmod(0o600)
        path.write_bytes(b"evil")
        assert asyncio.run(self.cache.find(name)) is None
        assert not path.exists()
        del self.model[name]

    @rule()
    def unpin(self) -> None:
        self.uses.close()
        self.pins.clear()

    @precondition(lambda self: not self.pins)
    @rule()
    def restart(self) -> None:
        """What is on the disk is taken over; its order is that of the files' last use."""
        for age, name in enumerate(self.model):
            paths = [self.cache.path(name), *self.root.glob(f"{name}.part*")]
            for path in paths:
                if path.exists():
                    os.utime(path, (age + 1_700_000_000, age + 1_700_000_000))
        self.model = OrderedDict((name, held) for name, held in self.model.items() if held[1])
        for path in self.root.glob("*.part*"):
            path.unlink()
        self.cache = BlobCache(self.root, LIMIT)
        self.evicted = 0

    @invariant()
    def both_hold_the_same(self) -> None:
        whole = [name for name, (_, is_whole) in self.model.items() if is_whole]
        assert self.cache.digests(99) == tuple(reversed(whole))
        assert self.cache.used_bytes == sum(size for size, _ in self.model.values()) <= LIMIT
        stats = self.cache.stats()
        assert (stats.entries, stats.evictions) == (len(whole), self.evicted)
        assert {path.name for path in self.root.glob("??/*")} == set(whole)


Cache.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
test_a_cache_is_its_model = Cache.TestCase


def put(cache: BlobCache, data: bytes) -> str:
    cache.put(name := digest_bytes(data), data)
    return name


async def test_each_question_is_a_hit_or_a_miss(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, LIMIT)
    here = put(cache, b"here")
    for name in (here, "0" * 64, here, "1" * 64):
        await cache.find(name)
    cache.ready(here)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.served_bytes) == (3, 2, 12)
    assert "3 of 5 asked for were here" in stats.in_words()


async def test_a_file_of_a_blob_that_is_here_needs_no_room_and_evicts_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    cache = BlobCache(tmp_path / "cache", LIMIT)
    first, second = put(cache, b"a" * 50), put(cache, b"b" * 50)
    (tmp_path / "made").write_bytes(b"b" * 50)
    await cache.adopt_file(second, tmp_path / "made")
    assert cache.ready(first)
    assert cache.used_bytes == LIMIT


class TestSmallDisk:
    """The disk has less room than the cache may take."""

    @pytest.fixture(autouse=True)
    def _disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free_bytes = 60
        monkeypatch.setattr(DiskBudget, "room_bytes", lambda _: self.free_bytes)

    def test_what_is_promised_to_one_blob_is_not_given_to_another(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        with cache.pinned(("0" * 64, "1" * 64)):
            cache.reserve("0" * 64, 40)
            with pytest.raises(DiskFull):
                cache.reserve("1" * 64, 21)
            assert cache.reserve("1" * 64, 20).name == f"{'1' * 64}.part"

    def test_room_is_made_on_the_disk_too_and_no_more_than_is_needed(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        kept = [put(cache, bytes([n]) * 20) for n in range(3)]
        self.free_bytes = 5
        cache.make_room(20)
        assert cache.digests(9) == (kept[2], kept[1])

    def test_why_nothing_can_be_kept_is_said_until_there_is_room(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        name = put(cache, b"x" * 30)
        with cache.pinned((name,)), pytest.raises(DiskFull):
            cache.make_room(61)
        self.free_bytes = 20
        assert "no room for 61" in str(cache.lack())
        self.free_bytes = 31  # with what could be evicted
        assert cache.lack() is None

    def test_a_write_that_found_the_disk_full_is_tried_again_after_an_eviction(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        name = put(cache, b"x" * 30)
        cache.evict_after(OSError(errno.ENOSPC, "full"), 10)
        assert cache.ready(name) is None
        with pytest.raises(DiskFull):
            cache.evict_after(OSError(errno.EDQUOT, "quota"), 10)
        broken = OSError(errno.EIO, "the disk is broken")
        with pytest.raises(OSError, match="broken") as raised:
            cache.evict_after(broken, 10)
        assert raised.value is broken


def test_what_was_in_use_lately_is_spared_for_what_may_be_needed_later(tmp_path: Path, monkeypatch: Any) -> None:
    now = [1000.0]
    monkeypatch.setattr("farm_client.agent.blobs.cache.time.monotonic", lambda: now[0])
    cache = BlobCache(tmp_path, LIMIT)
    old = put(cache, b"o" * 50)
    now[0] += 100
    recent = put(cache, b"r" * 50)
    with pytest.raises(CacheFull):
        cache.make_room(60, sparing_seconds=50)
    cache.make_room(50, sparing_seconds=50)
    assert (cache.ready(old), cache.ready(recent) is not None) == (None, True)
