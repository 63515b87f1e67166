"""What all processes of a sandbox use together is measured, and what is over a bound is named and ended."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from farm_client.sandbox.ending import end_all
from farm_client.sandbox.policy import Bounds
from farm_client.sandbox.watch import excess, resident_bytes, scratch_excess, tree

MIB = 1024**2
FORKS = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        signal.pause()
print("ready", flush=True)
signal.pause()
"""
HOLDS = """
import mmap, signal, sys
held = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
held.write(b"1" * len(held))
if len(sys.argv) > 2:
    import os
    for _ in range(int(sys.argv[2])):
        if os.fork() == 0:
            signal.pause()
print("ready", flush=True)
signal.pause()
"""


@contextmanager
def running(code: str, *arguments: object) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        end_all(process.pid)
        process.communicate()


def test_a_tree_has_all_that_descend_from_a_process() -> None:
    with running(FORKS, 3) as pid:
        expected = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
        assert set(tree(pid)) == expected
        assert len(expected) == 4


CHAIN = """
import os, signal, sys
for _ in range(int(sys.argv[1])):
    if os.fork() != 0:
        signal.pause()
print("ready", flush=True)
signal.pause()
"""


def test_a_chain_of_processes_may_be_longer_than_python_calls_itself() -> None:
    with running(CHAIN, 150) as pid:
        deepest = sys.getrecursionlimit()
        sys.setrecursionlimit(100 + len(inspect.stack()))
        try:
            assert len(set(tree(pid))) == 151
            assert excess(pid, Bounds(processes=100)) is not None
        finally:
            sys.setrecursionlimit(deepest)


def test_nothing_is_measured_of_a_process_that_is_gone() -> None:
    with running(FORKS, 0) as pid:
        pass
    assert (resident_bytes(pid), excess(pid, Bounds(memory_bytes=1))) == (0, None)


@pytest.mark.parametrize(("processes", "is_over"), [(4, False), (3, True)])
def test_processes_are_counted_together(processes: int, is_over: bool) -> None:
    with running(FORKS, 3) as pid:
        found = excess(pid, Bounds(processes=processes))
    assert (found is not None) is is_over
    if found is not None:
        assert (found.bound, found.sentence) == ("processes", "it ran 4 processes and threads, and may run 3")


def test_memory_over_the_bound_is_named() -> None:
    with running(HOLDS, 64 * MIB) as pid:
        assert excess(pid, Bounds(memory_bytes=256 * MIB)) is None
        found = excess(pid, Bounds(memory_bytes=32 * MIB))
        assert resident_bytes(pid) > 64 * MIB
    assert found is not None
    assert found.bound == "memory"
    assert found.sentence.endswith("and may use 32.0 MiB")


def test_memory_that_forked_processes_share_counts_once() -> None:
    with running(HOLDS, 64 * MIB, 4) as pid:
        assert excess(pid, Bounds(memory_bytes=160 * MIB)) is None  # the rough sum is 320 MiB


# Two process groups of one session, each of a leader and the processes that it forked. Only the first says that it is
# ready, once the second has told it over a pipe: two that print for themselves can have their lines run together.
GROUPS = """
import os, signal, sys
def fork_members():
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            signal.pause()
told, tell = os.pipe()
if os.fork() == 0:
    os.setpgid(0, 0)
    fork_members()
    os.write(tell, b"1")
    signal.pause()
fork_members()
os.read(told, 1)
print("ready", flush=True)
signal.pause()
"""


def test_end_all_ends_every_group_of_the_session() -> None:
    with running(GROUPS, 2) as pid:
        started = [psutil.Process(one) for one in tree(pid)]
        assert sorted(Counter(os.getpgid(one.pid) for one in started).values()) == [3, 3]
        end_all(pid)
        _gone, alive = psutil.wait_procs(started, 5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


class TestScratch:
    def test_its_bytes_are_bound(self, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        for name in ("one", "deep/two"):
            (tmp_path / name).write_bytes(os.urandom(MIB))
        assert scratch_excess(tmp_path, Bounds(scratch_bytes=3 * MIB)) is None
        found = scratch_excess(tmp_path, Bounds(scratch_bytes=MIB + MIB // 2))
        assert found is not None
        assert found.sentence == "it wrote over 1.5 MiB of files, which is what it may"

    def test_so_are_its_files(self, tmp_path: Path) -> None:
        for number in range(11):
            (tmp_path / str(number)).touch()
        assert scratch_excess(tmp_path, Bounds(scratch_files=11)) is None
        found = scratch_excess(tmp_path, Bounds(scratch_files=10))
        assert found is not None
        assert found.sentence == "it made over 10 files, which is what it may"

    def test_a_hole_in_a_file_is_not_counted_and_a_link_not_followed(self, tmp_path: Path) -> None:
        with (tmp_path / "sparse").open("wb") as file:
            file.truncate(100 * MIB)
        (tmp_path / "way").symlink_to("/usr")
        assert scratch_excess(tmp_path, Bounds(scratch_bytes=MIB, scratch_files=10)) is None

    def test_a_folder_that_is_gone_is_empty(self, tmp_path: Path) -> None:
        assert scratch_excess(tmp_path / "gone", Bounds(scratch_bytes=1)) is None

    def test_one_that_lies_too_deep_to_be_measured_is_over(self, tmp_path: Path) -> None:
        (tmp_path / "/".join("d" * 200)).mkdir(parents=True)
        assert scratch_excess(tmp_path, Bounds()) is None
        (tmp_path / "/".join("d" * 300)).mkdir(parents=True)
        found = scratch_excess(tmp_path, Bounds())
        assert found is not None
        assert "cannot be measured" in found.sentence

    def test_a_deleted_file_counts_as_long_as_it_is_open(self, tmp_path: Path) -> None:
        bounds = Bounds(scratch_bytes=MIB)
        with (tmp_path / "file").open("wb", buffering=0) as file:
            file.write(os.urandom(2 * MIB))
            (tmp_path / "file").unlink()
            assert scratch_excess(tmp_path, bounds) is None
            assert scratch_excess(tmp_path, bounds, os.getpid()) is not None
        assert scratch_excess(tmp_path, bounds, os.getpid()) is None
