"""The folders of an executor: what is given, lent and taken, and what a hostile one leaves there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.sandbox import room as rooms
from farm_client.sandbox.room import Room


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room.make(tmp_path)


def cached(tmp_path: Path, name: str) -> Path:
    path = tmp_path / "cache" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(name)
    return path


class TestGiving:
    def test_a_file_is_linked_and_not_copied(self, room: Room, tmp_path: Path) -> None:
        file = cached(tmp_path, "shard")
        path = room.give(file)
        assert path == room.given / "shard"
        assert path.samefile(file)

    def test_a_file_of_another_file_system_is_copied(
        self, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        path = room.give(cached(tmp_path, "shard"))
        assert path.read_text() == "shard"
        assert path.stat().st_nlink == 1

    def test_a_name_may_have_folders(self, room: Room, tmp_path: Path) -> None:
        path = room.give(cached(tmp_path, "blob"), "base/model/config.json")
        assert path == room.given / "base/model/config.json"

    def test_files_stay_for_the_next_order_and_then_go(self, room: Room, tmp_path: Path) -> None:
        one, two, three = (cached(tmp_path, name) for name in ("one", "two", "three"))
        room.give(cached(tmp_path, "frozen"))
        shown = []
        for files in ((one, two), (two,), (three,), (three,)):
            room.give_all(files)
            shown.append(sorted(path.name for path in room.given.iterdir()))
        assert shown == [
            ["frozen", "one", "two"],
            ["frozen", "one", "two"],
            ["frozen", "three", "two"],
            ["frozen", "three"],
        ]

    @given(orders=st.lists(st.sets(st.sampled_from("abcdef")), max_size=8))
    @settings(max_examples=30, deadline=None)
    def test_what_the_last_two_orders_name_is_there_and_nothing_else(
        self, tmp_path_factory: pytest.TempPathFactory, orders: list[set[str]]
    ) -> None:
        folder = tmp_path_factory.mktemp("rooms")
        room = Room.make(folder)
        for number, names in enumerate(orders):
            room.give_all(cached(folder, name) for name in sorted(names))
            before = orders[number - 1] if number else set()
            assert {path.name for path in room.given.iterdir()} == names | before


class TestLending:
    def test_the_executor_gets_what_there_is_and_a_place_for_the_next_one(self, room: Room, tmp_path: Path) -> None:
        path = room.lend(cached(tmp_path, "work.state"), "snapshots")
        assert (path, path.read_text()) == (room.scratch / "snapshots/work.state", "work.state")
        assert not room.lend(tmp_path / "none.state", "snapshots").exists()
        assert (room.scratch / "snapshots").is_dir()

    @pytest.mark.parametrize("leads_to", ["outside", "nowhere"])
    def test_a_link_in_place_of_the_folder_is_not_followed(self, room: Room, tmp_path: Path, leads_to: str) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "work.state").write_text("the volunteer's")
        (room.scratch / "snapshots").symlink_to(tmp_path / leads_to)
        path = room.lend(cached(tmp_path, "work.state"), "snapshots")
        assert path.read_text() == "work.state"
        assert not (room.scratch / "snapshots").is_symlink()
        assert [(file.name, file.read_text()) for file in outside.iterdir()] == [("work.state", "the volunteer's")]

    def test_what_can_t_be_linked_is_copied_there(
        self, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
        file = cached(tmp_path, "work.state")
        path = room.lend(file, "snapshots")
        assert path.read_text() == "work.state"
        assert not path.samefile(file)


class TestTaking:
    def test_a_file_is_moved_out_of_reach(self, room: Room) -> None:
        left = room.scratch / "own" / "update"
        left.parent.mkdir()
        left.write_text("update")
        taken = room.take(str(left))
        assert taken is not None
        assert taken.read_text() == "update"
        assert taken.parent == room.root / "taken"
        assert not left.exists()

    def test_two_files_of_one_name_are_two(self, room: Room) -> None:
        taken = []
        for text in ("one", "two"):
            (room.scratch / "update").write_text(text)
            taken.append(room.take(str(room.scratch / "update")))
        assert [path and path.read_text() for path in taken] == ["one", "two"]

    @pytest.mark.parametrize(
        "name",
        [
            "/etc/hostname",
            "update",
            "",
            "{scratch}",
            "{scratch}/../given/x",
            "{scratch}/no",
            "{scratch}/\0",
            "{given}/x",
        ],
    )
    def test_what_is_no_file_of_the_scratch_folder_is_not_taken(self, room: Room, name: str) -> None:
        (room.given / "x").write_text("x")
        assert room.take(name.format(scratch=room.scratch, given=room.given)) is None
        assert (room.given / "x").exists()

    @pytest.mark.parametrize("kind", ["link", "folder link", "folder", "pipe", "dangling"])
    def test_no_link_is_followed_and_nothing_but_a_file_is_taken(self, room: Room, tmp_path: Path, kind: str) -> None:
        secret = cached(tmp_path, "secret")
        path = room.scratch / "update"
        match kind:
            case "link":
                path.symlink_to(secret)
            case "folder link":
                (room.scratch / "way").symlink_to(secret.parent)
                path = room.scratch / "way" / "secret"
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "dangling":
                path.symlink_to(tmp_path / "nowhere")
        assert room.take(str(path)) is None
        assert secret.read_text() == "secret"

    def test_a_file_that_becomes_a_link_meanwhile_is_not_taken(
        self, room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secret = cached(tmp_path, "secret")
        left = room.scratch / "update"
        left.write_text("update")
        rename = os.rename

        def swap_and_rename(*arguments: object, **options: object) -> None:
            left.unlink()
            left.symlink_to(secret)
            rename(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "rename", swap_and_rename)
        assert room.take(str(left)) is None
        assert secret.read_text() == "secret"
        assert not list((room.root / "taken").iterdir())


def test_it_is_removed_whatever_rights_its_files_have(room: Room) -> None:
    deep = room.scratch / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    for path in (deep / "file", deep, deep.parent):
        path.chmod(0o000)
    room.remove()
    assert not room.root.exists()


def test_a_room_is_deleted_however_deep_its_folders_lie(room):
    """Python's own way down ends at its deepest call, and at the longest path."""
    here = os.getcwd()  # noqa: PTH109
    os.chdir(room.scratch)
    try:
        for _ in range(2100):
            os.mkdir("d", mode=0o700)  # noqa: PTH102
            os.chdir("d")
        os.chmod(".", 0)  # noqa: PTH101
    finally:
        os.chdir(here)
    room.remove()
    assert not room.root.exists()


class TestHeld:
    """What ends outside of an executor holds its room: a container's keeper."""

    @pytest.fixture
    def hold(self, room: Room) -> Iterator[BinaryIO]:
        fcntl = pytest.importorskip("fcntl")
        file = (room.root / rooms.HOLD).open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        file.close()

    def test_it_is_removed_when_it_was_let_go(
        self, room: Room, hold: BinaryIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[bool] = []

        def let_go(_seconds: float) -> None:
            waited.append(room.root.exists())
            if len(waited) == 3:
                hold.close()

        monkeypatch.setattr(rooms.time, "sleep", let_go)
        room.remove()
        assert waited == [True] * 3
        assert not room.root.exists()

    @pytest.mark.usefixtures("hold")
    def test_it_is_removed_all_the_same_after_a_while(self, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rooms, "_HELD_SECONDS", 0.0)
        room.remove()
        assert not room.root.exists()
