"""What the cache remembers over restarts, for whom its blobs are, and what an owner sees and clears of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.blobs.cache_book import CacheBook, Notes, book_file, read_notes
from farm_client.agent.blobs.cache_entry import Cleared
from farm_client.agent.blobs.cache_view import find_task, in_lines, look_into
from farm_client.agent.errors import NoSuchTask
from farm_client.transfer.partial_file import PartialFile
from protocol.digests import digest_bytes


def put(cache: BlobCache, data: bytes, task_id: str = "") -> str:
    with cache.pinned((digest := digest_bytes(data),), task_id):
        cache.put(digest, data)
    return digest


def test_what_is_known_of_a_blob_survives_a_restart(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    digest = digest_bytes(b"shard")
    with cache.pinned((digest,), "t1"):
        partial = PartialFile(cache.reserve(digest, 5), 5)
        partial.write(0, b"shard")
        partial.finish()
        partial.close()
        cache.adopt(digest, 5, fetch_seconds=2.5)
    cache.ready(digest)
    cache.book.name_task("t1", "digits")
    cache.book.warmed("t1", 1.25)
    cache.save_book()
    again = BlobCache(tmp_path, 1000)
    again.save_book()
    (task,) = look_into(tmp_path)
    assert (task.task_id, task.name, task.hits, task.fetch_seconds, task.warm_seconds) == ("t1", "digits", 1, 2.5, 1.25)
    assert (task.size_bytes, task.resident_bytes) == (5, 5)
    assert task.blobs[0].whole


def test_what_was_slow_to_fetch_outlives_what_is_newer(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 250)
    slow, quick = digest_bytes(b"s" * 100), digest_bytes(b"q" * 100)
    for digest, data, seconds in ((slow, b"s" * 100, 30.0), (quick, b"q" * 100, 0.1)):
        cache.reserve(digest, 100).write_bytes(data)
        cache.adopt(digest, 100, seconds)
    for _ in range(2):
        cache.ready(quick)
    put(cache, b"n" * 100)
    assert slow in cache
    assert quick not in cache
    assert cache._inflation > 0


@pytest.mark.parametrize("text", ["", "{", '{"blobs": {"a": {"hits": -1}}}', '{"inflation": NaN}'])
def test_a_damaged_book_is_an_empty_one(tmp_path: Path, text: str) -> None:
    book_file(tmp_path).write_text(text)
    assert read_notes(tmp_path) == Notes()


def test_a_disk_that_takes_no_book_is_put_up_with(tmp_path: Path) -> None:
    book = CacheBook(tmp_path / "gone")
    book.save({}, 1.0)
    assert not book.is_due()


def test_of_many_tasks_the_latest_are_remembered(tmp_path: Path) -> None:
    book = CacheBook(tmp_path)
    for number in range(300):
        book.name_task(f"t{number}", "")
    book.name_task("t100", "again")
    book.name_task("t300", "")
    assert (len(book.tasks), "t44" in book.tasks, "t46" in book.tasks) == (256, False, True)


def test_of_a_blobs_users_the_latest_four_are_remembered(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path, 1000)
    for task in ("a", "b", "c", "d", "e", "b", "b"):
        digest = put(cache, b"code", task) if task == "a" else use(cache, b"code", task)
    assert cache._entries[digest].tasks == ("c", "d", "e", "b")


def use(cache: BlobCache, data: bytes, task_id: str) -> str:
    with cache.pinned((digest_bytes(data), "0" * 64), task_id):  # one of them never came
        return digest_bytes(data)


class TestClearing:
    """Only what nobody uses goes."""

    def test_of_one_task_what_others_use_too_stays(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 1000)
        own, shared, other = (put(cache, data, "t1") for data in (b"own", b"shared", b"other"))
        use(cache, b"shared", "t2")
        cache._entries[other].tasks = ("t2",)
        assert cache.clear("t1") == Cleared(1, 3, 0)
        assert (own in cache, shared in cache, other in cache) == (False, True, True)
        assert cache.clear("t1") == Cleared()
        assert cache.clear("t2") == Cleared(2, 11, 0)

    def test_what_is_in_use_stays_and_goes_later(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 1000)
        used, idle = put(cache, b"used", "t1"), put(cache, b"idle", "t1")
        with cache.pinned((used,), "t1"):
            assert cache.clear() == Cleared(1, 4, 1)
            assert cache.path(used).read_bytes() == b"used"
            assert not cache.path(idle).exists()
            assert cache.clear("t1") == Cleared(0, 0, 1)
        assert cache.clear("t1") == Cleared(1, 4, 0)
        assert cache.used_bytes == 0

    def test_half_a_blob_goes_too(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 10**6)
        half(cache)
        assert cache.clear() == Cleared(1, 100_000, 0)
        assert not list(tmp_path.glob("*.part*"))


def half(cache: BlobCache) -> str:
    digest = digest_bytes(b"half")
    partial = PartialFile(cache.reserve(digest, 100_000), 100_000)
    partial.write(0, b"x" * 50_000)
    partial.close()
    return digest


class TestLooking:
    """Beside a running agent, whose files come and go."""

    def test_there_is_nothing_without_a_folder(self, tmp_path: Path) -> None:
        assert look_into(tmp_path / "gone") == ()
        assert in_lines(()) == ["0 B in 0 blobs of 0 tasks"]

    def test_half_a_blob_is_shown_as_what_is_here_of_it(self, tmp_path: Path) -> None:
        half(BlobCache(tmp_path, 10**6))
        (task,) = look_into(tmp_path)
        (blob,) = task.blobs
        assert (task.task_id, blob.whole, blob.size_bytes) == ("", False, 100_000)
        assert 50_000 <= blob.resident_bytes < 100_000
        assert "of no task yet" in in_lines((task,))[1]
        assert "of 97.7 KiB" in in_lines((task,))[1]

    def test_a_file_that_goes_meanwhile_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = BlobCache(tmp_path, 10**6)
        put(cache, b"gone")
        half(cache)
        before, stat = look_into(tmp_path), Path.stat

        def gone(path: Path, **options: bool) -> os.stat_result:
            if len(path.stem) == 64:
                raise FileNotFoundError
            return stat(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "stat", gone)
            assert look_into(tmp_path) == ()
        assert len(before[0].blobs) == 2

    def test_tasks_are_told_in_the_order_of_their_last_use_and_not_all_blobs_are(self, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path, 1000)
        old = put(cache, b"old", "t1")
        for number in range(10):
            put(cache, bytes([number]), "t2")
        cache.book.name_task("t2", "digits\x1b[0m")
        cache.book.warmed("t2", 4.0)
        cache.save_book()
        os.utime(cache.path(old), (1000, 1000))
        tasks = look_into(tmp_path)
        assert [task.task_id for task in tasks] == ["t2", "t1"]
        lines = in_lines(tasks, now=1000 + 7200)
        assert lines[0] == "13 B in 11 blobs of 2 tasks"
        assert "\x1b" not in lines[1]
        assert "(t2): 10 B, used 0 s ago, 0 hits, 4.0 s to warm" in lines[1]
        assert lines[10] == "  and 2 blobs more (--json lists all)"
        assert lines[11].startswith("t1: 3 B, used 2 h ago")

    @pytest.mark.parametrize(("named", "found"), [("task-a1", "task-a1"), ("task-b", "task-b2"), ("bees", "task-b2")])
    def test_a_task_is_named_as_elsewhere(self, tmp_path: Path, named: str, found: str) -> None:
        self.two_tasks(tmp_path)
        assert find_task(tmp_path, named) == found

    @pytest.mark.parametrize(("named", "words"), [("task-", "2 tasks"), ("other", "no task")])
    def test_a_task_that_is_not_one_is_an_error(self, tmp_path: Path, named: str, words: str) -> None:
        self.two_tasks(tmp_path)
        with pytest.raises(NoSuchTask, match=words):
            find_task(tmp_path, named)

    def two_tasks(self, root: Path) -> None:
        cache = BlobCache(root, 1000)
        put(cache, b"a", "task-a1")
        put(cache, b"b", "task-b2")
        cache.book.name_task("task-b2", "bees")
        cache.save_book()
