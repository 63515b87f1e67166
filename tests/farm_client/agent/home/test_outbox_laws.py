"""The outbox against a list: results put, settled, found damaged and taken over by the next process, in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.agent.home.outbox import MAX_ENTRIES, Outbox, Parcel
from protocol.assignments import Result
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef

FARM, CLIENT = "ws://farm", "c1"
NAMES = ["a", "b", "c", "d"]

_names = st.sampled_from(NAMES)
_sizes = st.integers(1, 60)
_steps = st.lists(
    st.tuples(st.just("inline"), _names, _sizes)
    | st.tuples(st.just("file"), _names, _sizes)
    | st.tuples(st.just("evaluation"), _names, st.just(0))
    | st.tuples(st.sampled_from(["remove", "read", "restart"]), _names, st.just(0)),
    max_size=20,
)


def result(name: str, update: BlobRef | None) -> Result:
    return Result(assignment_id=name, fence=len(name), samples=3, metrics={"loss": 0.5}, update=update)


def update_of(data: bytes, *, inline: bool) -> BlobRef:
    return BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data if inline else None)


class World:
    """An outbox that is opened again and again, and what it must hold: (round, update's bytes) by name, in order."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.notes: list[str] = []
        self.box = self.opened()
        self.model: dict[str, tuple[int, bytes]] = {}
        self.rounds = 0

    def opened(self) -> Outbox:
        return Outbox(self.folder, FARM, CLIENT, self.max_bytes, self.notes.append)

    def _expect(self, name: str, data: bytes) -> None:
        self.model.pop(name, None)
        while self.model and sum(len(d) for _, d in self.model.values()) + len(data) > self.max_bytes:
            del self.model[next(iter(self.model))]  # the oldest goes
        self.model[name] = (self.rounds, data)

    def _put(self, name: str, size: int, path: Path | None) -> None:
        self.rounds += 1
        data = bytes([self.rounds % 256]) * size
        if path is not None:
            path.write_bytes(data)
        update = update_of(data, inline=path is None) if size else None
        self.box.put(Parcel(result(name, update), self.rounds, path))
        self._expect(name, data)

    def inline(self, name: str, size: int) -> None:
        self._put(name, size, None)

    def file(self, name: str, size: int) -> None:
        path = self.folder.parent / "made by an executor"
        self._put(name, size, path)
        assert not path.exists()  # it is the outbox's now

    def evaluation(self, name: str, _: int) -> None:
        self._put(name, 0, None)

    def remove(self, name: str, _: int) -> None:
        self.box.remove(name)
        self.model.pop(name, None)

    def read(self, name: str, _: int) -> None:
        parcel = self.box.read(name)
        assert (parcel is not None) == (name in self.model)
        if parcel is None:
            return
        number, data = self.model[name]
        update = parcel.result.update
        assert parcel.round == number
        assert (update is None) == (not data)
        if update is not None:
            assert (parcel.path.read_bytes() if parcel.path is not None else update.inline) == data

    def restart(self, *_: object) -> None:
        self.box = self.opened()

    def check(self) -> None:
        assert self.box.assignment_ids() == tuple(self.model)
        assert [one.assignment_id for one in self.box.held()] == list(self.model)
        assert all(one.finished and one.fence == 1 for one in self.box.held())
        assert self.box.emptied.is_set() == (not self.model)


@settings(max_examples=40)
@given(steps=_steps, max_bytes=st.sampled_from([50, 120, 10**6]))
def test_it_holds_what_was_put_and_is_not_settled_within_its_bound(
    steps: list[tuple[str, str, int]], max_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "outbox"
        root.mkdir()
        world = World(root, max_bytes)
        for name, which, size in steps:
            getattr(world, name)(which, size)
            world.check()
        for which in NAMES:
            world.remove(which, 0)
        assert [path for path in root.rglob("*") if path.is_file()] == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "outbox").mkdir()
    return World(tmp_path / "outbox", 10**6)


def files(world: World, pattern: str) -> list[Path]:
    return sorted(world.folder.rglob(pattern))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "garbage": lambda path: path.write_bytes(b"\xff" * 50),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("when", ["in mid-run", "between runs"])
@pytest.mark.parametrize("what", ["*.result", "*.update"])
@pytest.mark.parametrize("how", [name for name in DAMAGES if name != "garbage"])
def test_a_damaged_entry_is_dropped_with_a_note_and_no_other_is(world: World, how: str, what: str, when: str) -> None:
    """A power cut may damage the newest entries: the farm has the work done again, and the rest is delivered."""
    world.file("a", 40)
    world.file("b", 40)
    DAMAGES[how](files(world, what)[0])
    if when == "between runs":
        world.restart()
    assert world.box.read("a") is None
    del world.model["a"]
    world.check()
    world.read("b", 0)
    leaves_a_trace = (how, what, when) != ("gone", "*.result", "between runs")
    assert any("the farm has it done again" in note for note in world.notes) == leaves_a_trace


@pytest.mark.parametrize("message", [b"\xff" * 50, b"\x81\xa4type\xa5ready"], ids=["garbage", "another message"])
def test_a_record_of_something_else_is_dropped(world: World, message: bytes) -> None:
    world.inline("a", 40)
    files(world, "*.result")[0].write_bytes(message)
    world.restart()
    assert world.box.assignment_ids() == ()


def test_an_update_that_rotted_inside_its_record_is_not_sent(world: World) -> None:
    world.inline("a", 40)
    (record,) = files(world, "*.result")
    data = record.read_bytes()
    place = data.index(bytes([1]) * 40)
    record.write_bytes(data[:place] + b"\x02" + data[place + 1 :])
    assert world.box.read("a") is None
    assert any("does not hash to its name" in note for note in world.notes)


def test_what_a_killed_process_left_half_written_is_cleared(world: World) -> None:
    world.inline("a", 40)
    folder = files(world, "*.result")[0].parent
    for name in ("00000009-1.part", "00000009.update", "notes.txt"):
        (folder / name).write_bytes(b"half")
    world.restart()
    world.check()
    assert [path.suffix for path in sorted(folder.iterdir())] == [".result"]


def test_no_more_wait_than_a_hello_can_name(world: World) -> None:
    for number in range(MAX_ENTRIES + 5):
        world.box.put(Parcel(result(f"n{number}", None), 1))
    assert world.box.assignment_ids() == tuple(f"n{number}" for number in range(5, MAX_ENTRIES + 5))
    assert sum("outbox is full" in note for note in world.notes) == 5


def test_the_newest_is_kept_however_large(tmp_path: Path) -> None:
    (tmp_path / "outbox").mkdir()
    world = World(tmp_path / "outbox", 50)
    world.inline("a", 20)
    world.inline("b", 500)
    assert world.box.assignment_ids() == ("b",)
    world.restart()
    assert world.box.assignment_ids() == ("b",)


def test_another_farm_or_another_identity_is_sent_nothing_of_it(world: World) -> None:
    world.inline("a", 40)
    for farm, client in (("ws://other", CLIENT), (FARM, "c2")):
        assert Outbox(world.folder, farm, client, 10**6, world.notes.append).assignment_ids() == ()
    world.restart()
    world.check()


def test_a_folder_that_vanishes_costs_no_result_of_this_run(world: World) -> None:
    shutil.rmtree(world.folder)
    parcel = Parcel(result("a", update_of(b"data", inline=True)), 1)
    assert world.box.put(parcel) == parcel
    assert world.box.read("a") == parcel
    assert any("lost if this agent stops now" in note for note in world.notes)
    world.box.remove("a")
    assert world.box.emptied.is_set()
