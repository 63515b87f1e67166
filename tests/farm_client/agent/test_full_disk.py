"""A disk that is full, read-only or gone ends no agent: what is only for show is skipped, blobs go, work waits."""

import errno
import io
import json
import os
from collections import namedtuple
from pathlib import Path

import pytest

from farm_client.agent.blobs import disk_space
from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.disk_space import MAX_RESERVE_BYTES, DiskBudget
from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.errors import BadHome, CacheFull, DiskFull, HomeGone
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.home.identity import load_identity
from farm_client.agent.home.outbox import Outbox
from farm_client.agent.machine.probe import Probe
from farm_client.agent.machine.selftest import self_test
from farm_client.agent.reporting.console import Console
from farm_client.agent.reporting.status import StatusBoard
from farm_client.executor.failures import CodeError, as_failed, calling
from farm_client.transfer.partial_file import PartialFile
from protocol.assignments import Reject, Result
from protocol.digests import digest_bytes
from protocol.messages import Pause, Resume, Scope
from tests.farm_client.agent.blobs.test_fetcher import blob, transfers
from tests.farm_client.agent.home.test_outbox import inline
from tests.farm_client.agent.scripted_farm import joined
from tests.farm_client.agent.waiting import until

__all__ = ["transfers"]
Usage = namedtuple("Usage", "total used free")
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """What the operating system says of the disk; ``refuses`` writes find it full all the same."""

    def __init__(self, monkeypatch):
        self.free = 10**12
        self.total = 10**12
        self.refuses = 0
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: Usage(self.total, 0, self.free))
        for owner, name in ((Path, "write_bytes"), (PartialFile, "write")):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, write):
        def written(*args):
            if self.refuses:
                self.refuses -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*args)

        return written

    def leave(self, room_bytes):
        self.free = room_bytes + MAX_RESERVE_BYTES


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def put(cache, number, size=10):
    data = bytes([number]) * size
    cache.put(digest_bytes(data), data)
    return digest_bytes(data)


def test_a_reserve_is_kept_free_and_a_share_of_a_small_disk(disk, tmp_path):
    disk.leave(100)
    assert DiskBudget(tmp_path).room_bytes() == 100
    disk.total, disk.free = 1000, 100
    assert DiskBudget(tmp_path).room_bytes() == 80


def test_the_cache_takes_no_more_than_the_disk_has_free(disk, tmp_path):
    cache = BlobCache(tmp_path, 10**9)
    first, second = put(cache, 1), put(cache, 2)
    disk.leave(0)
    third = put(cache, 3)
    assert cache.digests(9) == (third, second)
    with pytest.raises(DiskFull, match="free some space"):
        cache.make_room(100)
    assert first not in cache
    assert second in cache, "nothing is evicted where that would not be enough"
    assert "no room for 100 B" in cache.lack()
    disk.leave(80)
    assert cache.lack() is None, "with what may be evicted there is room"


def test_what_is_being_fetched_counts_with_what_is_still_to_come(disk, tmp_path):
    cache = BlobCache(tmp_path, 10**9)
    disk.leave(100)
    with cache.pinned(("a" * 64,)):
        cache.reserve("a" * 64, 70)
        with pytest.raises(DiskFull):
            cache.reserve("b" * 64, 40)
        cache.reserve("b" * 64, 30)


def test_the_limit_of_the_cache_is_told_from_a_full_disk(disk, tmp_path):
    cache = BlobCache(tmp_path, 50)
    with pytest.raises(CacheFull, match="--cache-bytes"):
        cache.make_room(60)
    assert cache.lack() is None


def test_a_cache_that_is_larger_than_its_disk_allows_shrinks_at_the_start(disk, tmp_path):
    cache = BlobCache(tmp_path, 10**9)
    old = put(cache, 1)
    os.utime(cache.path(old), (1, 1))
    new = put(cache, 2)
    disk.leave(-10)
    assert BlobCache(tmp_path, 10**9).digests(9) == (new,)


def test_a_write_that_finds_the_disk_full_evicts_and_is_tried_again(disk, tmp_path):
    cache = BlobCache(tmp_path, 10**9)
    old = put(cache, 1)
    disk.refuses = 1
    new = put(cache, 2)
    assert (old in cache, new in cache) == (False, True)
    disk.refuses = 2
    with pytest.raises(DiskFull):
        put(cache, 3)


async def test_a_download_that_finds_the_disk_full_evicts_and_begins_again(disk, farm, transfers, tmp_path):
    async with Fetcher(BlobCache(tmp_path, 10**9), transfers) as fetcher:
        old = put(fetcher.cache, 1)
        disk.refuses = 1
        path = await fetcher.fetch(blob(farm, 2))
        assert path.read_bytes() == bytes([2]) * 1000
        assert old not in fetcher.cache
        disk.refuses = 100
        with pytest.raises(DiskFull):
            await fetcher.fetch(blob(farm, 3, size=5000))
        assert not list(tmp_path.glob("*.*")), "half a blob keeps no disk full"


def test_a_cache_whose_folder_is_gone_says_so(tmp_path):
    (tmp_path / "cache").mkdir()
    cache = BlobCache(tmp_path / "cache", 10**9)
    (tmp_path / "cache").rmdir()
    with pytest.raises(HomeGone, match="gone"):
        put(cache, 1)


def nowhere(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


def test_a_status_that_cannot_be_written_is_skipped(tmp_path):
    board = StatusBoard(nowhere(tmp_path) / "status.json")
    board.show(doing="resting")
    assert board.status.doing == "resting"


class FullLog(io.StringIO):
    def write(self, _):
        raise NO_SPACE


def test_a_log_that_cannot_be_written_is_skipped():
    console = Console(stream=FullLog())
    console.tell("a line")
    console.trace("a line", ValueError("x"))
    closed = io.StringIO()
    closed.close()
    Console(stream=closed).tell("a line")


def test_an_outbox_without_a_disk_keeps_results_in_memory(tmp_path):
    notes = []
    outbox = Outbox(nowhere(tmp_path), "farm", "c1", 10**6, notes.append)
    outbox.put(inline("a1"))
    assert outbox.read("a1") == inline("a1")
    outbox.remove("a1")
    assert len(notes) == 2


def test_a_probe_without_its_disk_tells_of_none(tmp_path):
    probe = Probe(nowhere(tmp_path))
    assert (probe.load().disk_free_bytes, probe.resources().disk_free_bytes) == (0, 0)


async def test_a_self_test_needs_no_room_in_the_home(tmp_path):
    good = json.dumps(
        {"torch_version": "2", "devices": [{"device": "cpu", "name": "CPU", "device_class": "cpu", "gflops": 5.0}]}
    )
    verdicts = await self_test(Probe(tmp_path), nowhere(tmp_path) / "self-test.json", ("echo", good))
    assert verdicts.bench_gflops == 5.0


def test_a_home_on_a_full_disk_is_refused_in_a_line_at_the_start(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise NO_SPACE

    home = HomeFolder(tmp_path)
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(BadHome, match="No space left"):
        load_identity(home.identity_file)


def test_a_full_disk_is_never_called_the_codes_fault(tmp_path):
    for error in (NO_SPACE, RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)")):
        with pytest.raises(type(error)), calling("loss(model, batch)", tmp_path):
            raise error
        failed = as_failed(error, "a1")
        assert (failed.code, failed.scope) == ("disk_full", Scope.ELSEWHERE)
    with pytest.raises(CodeError), calling("loss(model, batch)", tmp_path):
        raise OSError(errno.ENOTDIR, "the code's own mistake")


async def test_an_agent_with_a_full_disk_waits_for_room_and_says_so(disk, farm, start_agent, home):
    async with start_agent() as life:
        peer = await joined(farm)
        disk.leave(-1)
        await peer.send(farm.assign(farm.task()))
        assert "no room" in (await peer.expect(Pause)).reason
        assert (await peer.expect(Reject)).code == "blob_unavailable"
        await until(lambda: "no room" in json.loads((home / "status.json").read_text())["doing"])
        await peer.close()
        peer = await joined(farm, incarnation=2)
        await peer.expect(Pause)
        disk.leave(10**9)
        await peer.expect(Resume)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        assert not life.done()


async def test_an_agent_whose_home_is_gone_waits_until_it_is_back(farm, start_agent, home):
    async with start_agent() as life:
        peer = await joined(farm)
        elsewhere = home.rename(home.with_name("unmounted"))
        assert "gone" in (await peer.expect(Pause)).reason
        await peer.send(farm.assign(farm.task()))
        assert (await peer.expect(Reject)).code == "blob_unavailable"
        elsewhere.rename(home)
        await peer.expect(Resume)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)
        assert not life.done()


async def test_an_agent_on_a_disk_that_turns_read_only_waits_too(farm, start_agent, monkeypatch):
    async with start_agent():
        peer = await joined(farm)
        with monkeypatch.context() as read_only:
            read_only.setattr(os, "access", lambda *_: False)
            assert "read-only" in (await peer.expect(Pause)).reason
        await peer.expect(Resume)


async def test_folders_that_somebody_deleted_are_made_again(farm, start_agent, home):
    async with start_agent():
        peer = await joined(farm)
        (home / "cache").rmdir()
        await until((home / "cache").exists)
        await peer.send(farm.assign(farm.task()))
        await peer.expect(Result)


async def test_an_executor_that_finds_the_disk_full_is_given_room_once(farm, start_agent, home):
    (home / "cache").mkdir()
    old = put(BlobCache(home / "cache", 10**9), 1)
    async with start_agent():
        peer = await joined(farm)
        await peer.send(farm.assign(farm.task(doing="fill_disk_once", marker=str(home / "marker"))))
        await peer.expect(Result)
    assert not (home / "cache" / old[:2] / old).exists()
