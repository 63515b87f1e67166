"""Control groups, in a folder that a test plays the kernel of; and for real, where a group can be made here."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm_client.sandbox import cgroups
from farm_client.sandbox.cgroups import Delegation, ExecutorGroup, cpu_max, find_delegation, is_delegated
from farm_client.sandbox.policy import Bounds

ALL = ("memory", "pids", "cpu")
FILES = {"memory": ("memory.max", "memory.oom.group", "memory.events"), "pids": ("pids.max",), "cpu": ("cpu.max",)}


class Kernel:
    """A hierarchy: what a group may give its children is in ``cgroup.controllers``, what it gives in the other file."""

    def __init__(self, folder: Path) -> None:
        self.root, self.proc = folder / "cgroup", folder / "proc"
        self.proc.mkdir()
        self.group(self.root, ALL, ALL)

    def group(self, folder: Path, possible: tuple[str, ...], given: tuple[str, ...], pids: str = "") -> Path:
        folder.mkdir(parents=True)
        (folder / "cgroup.controllers").write_text(" ".join(possible))
        (folder / "cgroup.subtree_control").write_text(" ".join(given))
        (folder / "cgroup.procs").write_text(pids)
        return folder

    def lives_in(self, path: str) -> None:
        """Have the process be in a group."""
        (self.proc / "mountinfo").write_text(
            "22 1 0:21 / /proc rw - proc proc rw\n"
            f"34 1 0:30 / {self.root} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
        )
        (self.proc / "cgroup").write_text(f"1:name=systemd:/\n0::/{path}\n")

    def mkdir(self, folder: Path) -> None:
        folder.mkdir()
        for controller in (folder.parent / "cgroup.subtree_control").read_text().replace("+", "").split():
            for name in FILES[controller]:
                (folder / name).write_text("")

    def delegation(self) -> Delegation:
        return Delegation(self.root, ALL, self.mkdir, shutil.rmtree)

    def found(self, ours: tuple[str, ...] = ("user", "user/app")) -> Delegation | None:
        theirs = {self.root / path for path in ours}
        return find_delegation(self.proc, lambda folder: folder in theirs, lambda _: True)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


@given(st.none() | st.floats(1e-6, 1000))
def test_processor_time_is_a_quota_of_each_period(cores: float | None) -> None:
    quota, period = cpu_max(cores).split()
    if cores is None:
        assert quota == "max"
    else:
        assert int(quota) >= 1000
        assert int(quota) / int(period) == pytest.approx(max(cores, 0.01), abs=1e-5)


def test_a_groups_bounds_are_written_and_only_what_changes_is_written_again(kernel: Kernel) -> None:
    group = kernel.delegation().make(Bounds(memory_bytes=10**9, processes=77), 0.5)
    files = {name: (group.folder / name).read_text() for names in FILES.values() for name in names}
    assert files == {
        "memory.max": "1000000000",
        "memory.oom.group": "1",
        "memory.events": "",
        "pids.max": "77",
        "cpu.max": "50000 100000",
    }
    (group.folder / "pids.max").write_text("seen")
    group.keep_within(Bounds(processes=77), None)
    assert (group.folder / "pids.max").read_text() == "seen"
    assert (group.folder / "memory.max").read_text() == "max"
    assert (group.folder / "cpu.max").read_text() == "max 100000"
    group.remove()
    assert not list(kernel.root.glob("aifarm-*"))


def test_what_a_system_does_not_bound_is_left_out(kernel: Kernel) -> None:
    (kernel.root / "cgroup.subtree_control").write_text("pids")
    group = kernel.delegation().make(Bounds(memory_bytes=1))
    assert {path.name for path in group.folder.iterdir()} == {"pids.max"}
    assert group.excess() is None


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ("low 0\noom 2\noom_kill 3\n", "ran out of memory, and may use 1.0 GiB"),
        ("oom 0\noom_kill 1\n", None),  # the machine's memory ran out
        ("oom 1\noom_kill 0\n", None),
        ("nonsense", None),
    ],
)
def test_memory_over_the_bound_is_told_apart(kernel: Kernel, events: str, told: str | None) -> None:
    group = kernel.delegation().make(Bounds(memory_bytes=2**30))
    (group.folder / "memory.events").write_text(events)
    excess = group.excess()
    assert (excess is None) == (told is None)
    if excess is not None and told is not None:
        assert excess.bound == "memory"
        assert told in excess.sentence


def test_a_bound_that_the_kernel_refuses_is_tried_again(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    group = kernel.delegation().make(Bounds(processes=5))

    def refuse(*_: object) -> int:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        group.keep_within(Bounds(processes=6), None)
    assert (group.folder / "pids.max").read_text() == "5"
    group.keep_within(Bounds(processes=6), None)
    assert (group.folder / "pids.max").read_text() == "6"


def test_a_group_whose_processes_are_on_their_way_out_is_waited_for(tmp_path: Path) -> None:
    tries = count()

    def rmdir(folder: Path) -> None:
        if next(tries) < 3:
            raise OSError
        shutil.rmtree(folder)

    (tmp_path / "group").mkdir()
    ExecutorGroup(tmp_path / "group", rmdir).remove()
    assert not (tmp_path / "group").exists()
    assert next(tries) == 4


def test_the_users_own_group_above_is_used_as_it_is(kernel: Kernel) -> None:
    kernel.group(kernel.root / "user", ALL, ("memory", "pids"))
    kernel.group(kernel.root / "user" / "app", ALL, (), pids="1")
    kernel.lives_in("user/app")
    found = kernel.found()
    assert found is not None
    assert (found.folder, found.controllers) == (kernel.root / "user", ("memory", "pids"))
    assert kernel.found(ours=("user/app",)) is None  # others are in it


def test_alone_in_its_group_it_moves_to_a_leaf(kernel: Kernel) -> None:
    own = kernel.group(kernel.root / "service", ("cpu", "memory", "io"), (), pids=f"{os.getpid()}\n")
    kernel.lives_in("service")
    found = kernel.found(ours=("service",))
    assert (own / "cgroup.subtree_control").read_text() == "+memory +cpu"
    assert (own / "aifarm-agent" / "cgroup.procs").read_text() == str(os.getpid())
    assert found is None  # this kernel's word is not a list of what it gives
    (own / "cgroup.subtree_control").write_text("memory cpu")
    found = kernel.found(ours=("service",))
    assert found is not None
    assert (found.folder, found.controllers) == (own, ("memory", "cpu"))


@pytest.mark.parametrize("lacking", ["mountinfo", "cgroup"])
def test_without_the_second_version_there_is_none(kernel: Kernel, lacking: str) -> None:
    kernel.lives_in("user")
    kernel.group(kernel.root / "user", ALL, ALL)
    assert kernel.found() is not None
    (kernel.proc / lacking).write_text("4:memory:/somewhere\n")
    assert kernel.found() is None
    (kernel.proc / lacking).unlink()
    assert kernel.found() is None


def test_what_does_not_hold_when_it_is_tried_is_not_used(kernel: Kernel) -> None:
    kernel.lives_in("")
    left, lives = kernel.root / "aifarm-999999999-1", kernel.root / f"aifarm-{os.getppid()}-1"
    left.mkdir()
    lives.mkdir()
    assert find_delegation(kernel.proc, lambda _: True, lambda _: False) is None
    assert not left.exists()  # a killed agent's
    lives.rmdir()
    assert not kernel.delegation().holds()  # this kernel puts nothing anywhere
    assert not Delegation(kernel.root / "gone", ()).holds()
    assert not list(kernel.root.glob("aifarm-*"))


@pytest.mark.parametrize(("mark", "ours"), [(b"1", True), (b"0", False), (None, False)])
def test_root_uses_what_is_left_to_it(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, mark: bytes, ours: bool) -> None:
    def getxattr(*_: object) -> bytes:
        if mark is None:
            raise OSError
        return mark

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getxattr", getxattr)
    assert is_delegated(kernel.root)  # that of a container, whose manager is nobody
    (kernel.root / "cgroup.type").write_text("domain")
    assert is_delegated(kernel.root) is ours
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert is_delegated(kernel.root)


def test_whose_a_process_is() -> None:
    child = subprocess.Popen(["/bin/sleep", "60"])
    assert cgroups._descends(os.getpid())
    assert cgroups._descends(child.pid)
    assert not cgroups._descends(os.getppid())
    child.kill()
    child.wait()
    assert cgroups._descends(child.pid)  # it is gone


@pytest.fixture
def real() -> Iterator[Delegation]:
    root = cgroups._mount(Path("/proc/self"))
    if root is None or not (delegation := Delegation(root, ())).holds():
        pytest.skip("no control group can be made here")
    yield delegation
    assert not list(root.glob(f"aifarm-{os.getpid()}-*"))


def test_a_real_group_takes_a_process_in_and_ends_all_of_it(real: Delegation) -> None:
    group = real.make(Bounds())
    process = subprocess.Popen(group.command(["/bin/sh", "-c", "sleep 60 & exec sleep 60"]))
    deadline = time.monotonic() + 30
    while len((group.folder / "cgroup.procs").read_text().split()) < 2 and time.monotonic() < deadline:
        pass
    inside = [int(pid) for pid in (group.folder / "cgroup.procs").read_text().split()]
    assert process.pid in inside
    assert len(inside) == 2
    group.remove()
    assert process.wait() == -9
    assert not group.folder.exists()
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in inside)
