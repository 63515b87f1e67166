"""The files of the cache one by one: whether each is what its name says, what a run before left, what a disk takes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.agent.blobs.cache_files import look_if_sound, look_of, protect, scan, touch
from farm_client.agent.blobs.disk_space import MAX_RESERVE_BYTES, DiskBudget, is_full, stored_bytes
from farm_client.agent.errors import DiskFull, HomeGone
from farm_client.transfer.partial_file import PartialFile
from protocol.digests import digest_bytes

DATA = b"weights" * 100
DIGEST = digest_bytes(DATA)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


class TestLook:
    """What changes when somebody writes to a file, cuts it, or puts another one in its place."""

    def test_it_stays_while_nobody_does(self, file: Path) -> None:
        assert look_of(file) == look_of(file) == look_if_sound(file, DIGEST)

    def test_it_differs_after_a_write_of_the_same_length(self, file: Path) -> None:
        before = look_of(file)
        os.utime(file, ns=(0, 0))
        file.write_bytes(DATA)
        assert look_of(file) != before

    def test_it_differs_after_a_replacement_of_the_same_age(self, file: Path, tmp_path: Path) -> None:
        before, status = look_of(file), file.stat()
        other = tmp_path / "other"
        other.write_bytes(DATA)
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(file)
        assert look_of(file) != before

    def test_a_use_that_is_noted_on_the_file_leaves_its_look(self, file: Path) -> None:
        look = look_of(file)
        assert look is not None
        touch(file, look, used_at_ns=1_000_000_000)
        assert look_of(file) == look
        assert file.stat().st_atime_ns == 1_000_000_000

    def test_nothing_looks_like_nothing(self, tmp_path: Path) -> None:
        assert look_of(tmp_path / "absent") is None
        assert look_if_sound(tmp_path / "absent", DIGEST) is None

    def test_a_file_of_other_bytes_is_not_sound(self, file: Path) -> None:
        assert look_if_sound(file, digest_bytes(b"other")) is None
        with file.open("r+b") as opened:
            opened.truncate(len(DATA) - 1)
        assert look_if_sound(file, DIGEST) is None

    def test_an_empty_file_may_be_sound(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert look_if_sound(tmp_path / "empty", digest_bytes(b"")) is not None

    def test_a_link_is_followed_nowhere(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(file)
        assert look_if_sound(tmp_path / "link", DIGEST) is None
        assert look_of(tmp_path / "link") != look_of(file)

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
    def test_what_is_no_file_is_not_sound_and_nobody_waits_for_it(
        self, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        """An executor, which runs a stranger's code, names the file that the agent is to take in."""
        make(tmp_path / "odd")
        before = len(list(Path("/proc/self/fd").iterdir()))
        assert look_if_sound(tmp_path / "odd", DIGEST) is None
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_a_write_while_it_is_read_is_noticed(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The bytes that were hashed are right; those that an executor maps a moment later may not be."""
        fstat, calls = os.fstat, []

        def meddling(handle: int) -> os.stat_result:
            calls.append(handle)
            if len(calls) == 2:
                os.utime(handle, ns=(0, 0))
            return fstat(handle)

        monkeypatch.setattr("farm_client.agent.blobs.cache_files.os.fstat", meddling)
        assert look_if_sound(file, DIGEST) is None
        assert len(calls) >= 2

    def test_a_protected_file_is_written_to_by_nobody(self, file: Path) -> None:
        protect(file)
        assert stat.S_IMODE(file.stat().st_mode) == 0o444
        assert look_if_sound(file, DIGEST) == look_of(file)


def blob(root: Path, data: bytes, unused_seconds: float) -> str:
    digest = digest_bytes(data)
    path = root / digest[:2] / digest
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    used_at = time.time() - unused_seconds
    os.utime(path, (used_at, 0))
    return digest


def half(root: Path, data: bytes, idle_seconds: float = 0.0, size_bytes: int = 1000) -> str:
    digest = digest_bytes(data)
    partial = PartialFile(root / f"{digest}.part", size_bytes)
    partial.write(0, data)
    partial.close()
    at = time.time() - idle_seconds
    os.utime(root / f"{digest}.part", (at, at))
    return digest


class TestScan:
    """What an earlier run left in the cache's folder."""

    def test_an_empty_folder_holds_nothing(self, tmp_path: Path) -> None:
        assert scan(tmp_path) == []

    def test_the_longest_unused_comes_first_whole_or_not(self, tmp_path: Path) -> None:
        names = [blob(tmp_path, b"new", 10), blob(tmp_path, b"old", 5000), half(tmp_path, b"half", 600)]
        found = scan(tmp_path)
        assert [one.digest for one in found] == [names[1], names[2], names[0]]
        assert [one.whole for one in found] == [True, False, True]
        assert [one.size_bytes for one in found] == [3, 1000, 3]

    def test_a_half_is_kept_for_a_day(self, tmp_path: Path) -> None:
        kept, gone = half(tmp_path, b"kept", 23 * 3600), half(tmp_path, b"gone", 25 * 3600)
        assert [one.digest for one in scan(tmp_path)] == [kept]
        assert not list(tmp_path.glob(f"{gone}*"))
        assert len(list(tmp_path.glob(f"{kept}*"))) == 2

    @pytest.mark.parametrize(
        "name", ["{}.new", "{}.json", "{}.part", "notes.txt", "{}.part.json.new"], ids=lambda name: name
    )
    def test_what_is_of_no_use_is_removed(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name.format(DIGEST)
        path.write_bytes(b"leftover")
        assert scan(tmp_path) == []
        assert not path.exists()

    def test_a_folder_in_the_way_is_left_and_no_blob_is_lost(self, tmp_path: Path) -> None:
        (tmp_path / "odd.folder").mkdir()
        digest = blob(tmp_path, b"blob", 1)
        assert [one.digest for one in scan(tmp_path)] == [digest]
        assert (tmp_path / "odd.folder").is_dir()

    def test_a_second_look_finds_the_same(self, tmp_path: Path) -> None:
        blob(tmp_path, b"a", 10)
        half(tmp_path, b"b", 5)
        first = {(one.digest, one.size_bytes, one.whole) for one in scan(tmp_path)}
        assert {(one.digest, one.size_bytes, one.whole) for one in scan(tmp_path)} == first


class Disk:
    """A disk of our own making."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
        self.total, self.free = total, free
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=self.total, free=self.free))


class TestDiskRoom:
    """What is free, less a reserve for the machine's own programs."""

    @pytest.mark.parametrize(
        ("total", "reserve"),
        [(2**50, MAX_RESERVE_BYTES), (MAX_RESERVE_BYTES * 50, MAX_RESERVE_BYTES), (10**9, 2 * 10**7), (0, 0)],
    )
    def test_the_reserve_is_a_share_of_a_small_disk_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, reserve: int
    ) -> None:
        disk = Disk(monkeypatch, total, free=total)
        assert DiskBudget(tmp_path).room_bytes() == total - reserve
        disk.free = 0
        assert DiskBudget(tmp_path).room_bytes() == -reserve

    def test_a_folder_that_is_gone_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(HomeGone, match=f"{tmp_path / 'gone'} is gone"):
            DiskBudget(tmp_path / "gone").room_bytes()

    def test_it_lacks_room_until_what_found_none_would_fit(self, tmp_path: Path) -> None:
        room = DiskBudget(tmp_path)
        assert room.lack(-5) is None  # nothing was asked of it yet
        error = room.full(1000)
        assert isinstance(error, DiskFull)
        assert str(tmp_path) in error.message
        assert room.lack(999) == error.message
        assert room.lack(1000) is None
        assert room.lack(0) is None  # it is forgotten, until the next write finds none

    def test_even_nothing_may_find_no_room(self, tmp_path: Path) -> None:
        """A disk past its reserve takes not even an empty file: that is a lack too."""
        room = DiskBudget(tmp_path)
        room.full(0)
        assert room.lack(0) is not None
        assert room.lack(1) is None

    @given(asked=st.lists(st.integers(1, 100), min_size=1), there=st.integers(0, 120))
    def test_the_last_that_found_none_counts(self, asked: list[int], there: int) -> None:
        room = DiskBudget(Path("/home"))
        for size in asked:
            room.full(size)
        assert (room.lack(there) is None) == (there >= asked[-1])


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (OSError(errno.EIO, "broken"), False),
        (OSError("odd"), False),
        (ValueError(errno.ENOSPC), False),
    ],
    ids=repr,
)
def test_a_full_disk_is_told_from_a_broken_one(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def test_holes_in_a_file_take_nothing_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10**9)
    assert stored_bytes(path) < 10**6
    (tmp_path / "dense").write_bytes(os.urandom(100_000))
    assert stored_bytes(tmp_path / "dense") >= 0
    assert stored_bytes(tmp_path / "absent") == 0
