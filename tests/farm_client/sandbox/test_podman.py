"""What Podman is told: the agent's arguments, each protection one or more of them, and a path that it can't take."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_client.sandbox import podman
from farm_client.sandbox.confinement import InContainer
from farm_client.sandbox.podman import ContainerRun, lifeline_number, mounted_below, options
from farm_client.sandbox.policy import Bounds, SandboxPolicy, VisibleFiles
from farm_client.sandbox.protection import ALL, Protection
from farm_client.sandbox.room import Room

POLICY = SandboxPolicy(
    VisibleFiles((Path("/usr"),), {Path("/bin"): "usr/bin"}, (Path("/dev/nvidia0"),)),
    Bounds(shm_bytes=4096, tmp_bytes=8192),
    secrets=(Path("/home/me/agent"),),
)
INSIDE = frozenset({Protection.MEMORY, Protection.FORKS, Protection.FILE_SIZE})
"""Limits, which the process puts on itself."""
NOT_OURS = frozenset({Protection.DESCRIPTORS, Protection.ENVIRONMENT, Protection.NEW_NAMESPACES})
"""By the process itself, the spawner, and the filter of system calls."""


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room.make(tmp_path)


def told(room: Room, *without: Protection) -> set[str]:
    return set(options(POLICY, room, ALL - set(without)))


def test_it_is_told_what_to_mount_and_how(room: Room) -> None:
    assert {
        "--volume=/usr:/usr:ro",
        f"--volume={room.given}:{room.given}:ro",
        f"--volume={room.scratch}:{room.scratch}:rw,nosuid,nodev",
        "--volume=/dev/nvidia0:/dev/nvidia0:rw",
        "--tmpfs=/tmp:rw,nosuid,nodev,mode=1777,size=8192",
        "--shm-size=4096",
        "--read-only",
        "--network=none",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
    } <= told(room)
    assert f"--volume={room.root}/container/empty:/sys/fs/cgroup:ro" in told(room), "no control groups"
    writable = [word for word in told(room) if word.startswith("--volume") and not word.endswith(":ro")]
    assert len(writable) == 2, "scratch is the only folder"


@pytest.mark.parametrize("protection", sorted(ALL - INSIDE - NOT_OURS))
def test_each_protection_is_some_of_the_options(room: Room, protection: Protection) -> None:
    assert told(room, protection) != told(room)


@pytest.mark.parametrize("protection", sorted(INSIDE))
def test_the_others_are_done_inside(room: Room, protection: Protection) -> None:
    bounds = Bounds(memory_bytes=2**30, scratch_bytes=2**30)
    all_up = InContainer(Path("podman"), SandboxPolicy(VisibleFiles(), bounds))
    one_down = InContainer(all_up.binary, all_up.policy, ALL - {protection})
    assert all_up.command(room, "x")[:-1] == one_down.command(room, "x")[:-1]
    assert all_up.command(room, "x") != one_down.command(room, "x")


def test_the_whole_of_sys_is_seen_where_the_view_has_it(room: Room) -> None:
    empty = "--mount=type=tmpfs,destination=/sys,tmpfs-size=4096,ro=true"
    assert empty in told(room)
    with_sys = SandboxPolicy(VisibleFiles((Path("/sys"),)))
    assert empty not in set(options(with_sys, room))
    assert f"--volume={room.root}/container/empty:/sys/fs/cgroup:ro" in set(options(with_sys, room))


def test_a_path_with_a_colon_cannot_be_mounted(room: Room) -> None:
    with pytest.raises(ValueError, match="colon"):
        list(options(SandboxPolicy(VisibleFiles((Path("/opt/a:b"),))), room))


def test_what_is_mounted_below_is_read_only_too(tmp_path: Path) -> None:
    (below := tmp_path / "seen" / "with blank").mkdir(parents=True)
    places = [tmp_path / "seen", below, tmp_path / "beside", tmp_path / "seen" / "not there", Path("/sys/fs/cgroup")]
    mounts = "".join(
        f"22 1 0:1 / {str(place).replace(' ', chr(92) + '040')} rw - ext4 /dev/vda rw\n" for place in places
    )
    assert mounted_below((tmp_path / "seen", Path("/sys")), mounts) == [below]


@pytest.mark.parametrize(("keep", "number"), [((), 3), ((3,), 4), ((17, 5), 18)])
def test_the_lifeline_comes_after_the_last_that_is_kept(keep: tuple[int, ...], number: int) -> None:
    assert lifeline_number(keep) == number
    run = ContainerRun("podman", "/room/container", (), {}, keep, ("echo",))
    assert f"--preserve-fds={number - 2}" in run.arguments({})


def test_podman_is_looked_for_where_systems_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman.shutil, "which", lambda name, path: f"{path.split(':')[0]}/{name}")
    assert list(podman.binaries()) == [Path("/usr/bin/podman")]
    monkeypatch.setattr(podman.shutil, "which", lambda _name, **_: None)
    assert list(podman.binaries()) == []


def test_a_signal_of_the_module_is_its_own_again() -> None:
    rung = InContainer(Path("podman"), POLICY)
    assert (rung.by, rung.own_exit_code(137), rung.own_exit_code(3)) == ("podman", -9, 3)
    assert rung.not_claimed == frozenset()
    assert rung.within(Bounds(processes=7)).policy.bounds.processes == 7
    assert rung.reading(Path("/packages")).policy.view.read_only == (Path("/usr"), Path("/packages"))
    assert rung.seeing(()).policy.view.devices == ()
