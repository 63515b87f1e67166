"""Chunks go to the disk in order, in as few writes as the disk's slowness asks for, and no error is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.write_behind import MAX_WAITING_BYTES, WriteBehind

LARGE = b"x" * (MAX_WAITING_BYTES // 2)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


class _Disk:
    """Remembers what was written where; each write first waits until it may."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self.may_write = threading.Semaphore(0)
        self.writing = threading.Lock()

    def write(self, at: int, chunks: list[bytes]) -> None:
        assert self.writing.acquire(blocking=False), "one write at a time"
        assert self.may_write.acquire(timeout=30)
        self.writes.append((at, b"".join(chunks)))
        self.writing.release()


async def test_what_comes_during_a_write_is_written_together(threads: ThreadPoolExecutor) -> None:
    disk = _Disk()
    behind = WriteBehind(disk.write, 100, threads)
    for chunk in (LARGE, b"b", b"c"):
        await behind.put(chunk)
    disk.may_write.release(2)
    await behind.flush()
    await behind.put(b"d")
    disk.may_write.release()
    await behind.flush()
    await behind.flush()
    end = 100 + len(LARGE)
    assert disk.writes == [(100, LARGE), (end, b"bc"), (end + 2, b"d")]


async def test_little_is_written_too_though_nothing_follows_it(threads: ThreadPoolExecutor) -> None:
    written = asyncio.Event()
    loop = asyncio.get_running_loop()
    behind = WriteBehind(lambda _at, _chunks: loop.call_soon_threadsafe(written.set), 0, threads)
    await behind.put(b"a")
    async with asyncio.timeout(30):
        await written.wait()
    await behind.flush()


async def test_a_slow_disk_slows_the_stream(threads: ThreadPoolExecutor) -> None:
    disk = _Disk()
    behind = WriteBehind(disk.write, 0, threads)
    await behind.put(LARGE)
    await behind.put(LARGE)
    third = asyncio.ensure_future(behind.put(LARGE))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not third.done()
    disk.may_write.release()
    await third
    disk.may_write.release(5)
    await behind.flush()
    assert b"".join(data for _, data in disk.writes) == LARGE * 3


async def test_the_disks_error_ends_it(threads: ThreadPoolExecutor) -> None:
    calls = []

    def refuse(_at: int, chunks: list[bytes]) -> None:
        calls.append(chunks)
        raise OSError("no")

    behind = WriteBehind(refuse, 0, threads)
    await behind.put(b"a")
    with pytest.raises(OSError, match="no"):
        await behind.flush()
    with pytest.raises(OSError, match="no"):
        await behind.put(b"b")
    assert calls == [[b"a"]]


async def test_nothing_put_is_nothing_written(threads: ThreadPoolExecutor) -> None:
    disk = _Disk()
    await WriteBehind(disk.write, 0, threads).flush()
    assert disk.writes == []
