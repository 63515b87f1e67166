"""Uploads begun, fed, settled, dropped and taken up by the next process, against sets of bytes in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound
from storage.blobs import FolderBlobStore
from storage.part_writer import write_part
from storage.partial_blob import PartialBlob, name_of, parse_name
from storage.uploads import UploadFolder

SIZE = 60
DATA = {number: bytes((number * 31 + at) % 256 for at in range(SIZE)) for number in range(3)}
_which = st.sampled_from(sorted(DATA))
_parts = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
_steps = st.lists(
    st.tuples(st.just("feed"), _which, _parts)
    | st.tuples(st.just("spoil"), _which, _parts)
    | st.tuples(st.sampled_from(["settle", "drop", "restart"]), _which, st.just((0, 0))),
    max_size=20,
)


class World:
    """An upload folder beside its blobs, and what is here of each upload: the right and the wrong bytes."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.blobs = FolderBlobStore(folder / "blobs")
        self.uploads = UploadFolder(folder / "uploads", self.blobs)
        self.model: dict[int, dict[int, bool]] = {}
        self.stored: set[int] = set()

    def open(self, which: int) -> PartialBlob:
        self.model.setdefault(which, {})
        return self.uploads.open(digest_bytes(DATA[which]), SIZE)

    def feed(self, which: int, part: tuple[int, int]) -> None:
        self._write(which, part, DATA[which], right=True)

    def spoil(self, which: int, part: tuple[int, int]) -> None:
        self._write(which, part, bytes(byte ^ 1 for byte in DATA[which]), right=False)

    def _write(self, which: int, part: tuple[int, int], data: bytes, *, right: bool) -> None:
        partial = self.open(which)
        write_part(partial, part[0], [data[slice(*part)]])
        for at in range(*part):
            self.model[which].setdefault(at, right)  # who comes first stays

    def settle(self, which: int, _: tuple[int, int]) -> None:
        partial = self.open(which)
        here = self.model[which]
        if len(here) == SIZE and not all(here.values()):
            with pytest.raises(DigestMismatch, match="upload them again"):
                self.uploads.settle(partial)
            del self.model[which]
            return
        assert self.uploads.settle(partial) == (len(here) == SIZE)
        if len(here) == SIZE:
            self.stored.add(which)
            del self.model[which]

    def drop(self, which: int, _: tuple[int, int]) -> None:
        partial = self.uploads.find(digest_bytes(DATA[which]), SIZE)
        assert (partial is not None) == (which in self.model)
        if partial is not None:
            assert self.uploads.drop(partial)
            assert not self.uploads.drop(partial)
            del self.model[which]

    def restart(self, *_: object) -> None:
        self.uploads = UploadFolder(self.root / "uploads", self.blobs)

    def check(self) -> None:
        assert len(self.uploads) == len(self.model)
        assert {partial.digest for partial in self.uploads.all()} == {digest_bytes(DATA[w]) for w in self.model}
        for which, here in self.model.items():
            partial = self.uploads.find(digest_bytes(DATA[which]), SIZE)
            assert partial is not None
            assert {at for gap in partial.missing() for at in range(*gap)} == set(range(SIZE)) - set(here)
            assert (partial.received_bytes, partial.is_complete) == (len(here), len(here) == SIZE)
        for which, data in DATA.items():
            assert self.blobs.has(digest_bytes(data)) == (which in self.stored)
            if which in self.stored:
                assert self.blobs.read(digest_bytes(data)) == data
        assert len(list((self.root / "uploads").iterdir())) == 2 * len(self.model)


@settings(max_examples=40)
@given(steps=_steps)
def test_only_right_bytes_become_blobs_and_nothing_is_forgotten_or_left(
    steps: list[tuple[str, int, tuple[int, int]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for name, which, part in steps:
            getattr(world, name)(which, part)
            world.check()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestCollect:
    """What nobody went on with goes; what is spared, or is used, stays."""

    def test_by_age_and_not_what_is_spared(self, world: World) -> None:
        for which in DATA:
            world.feed(which, (0, 10))
        now = max(partial._progress_at for partial in world.uploads.all()) + 100
        spared = {name_of(digest_bytes(DATA[1]), SIZE)}
        assert world.uploads.collect(1000, now).count == 0
        gone = world.uploads.collect(99, now, spared)
        assert (gone.count, gone.bytes) == (2, 20)
        assert [partial.digest for partial in world.uploads.all()] == [digest_bytes(DATA[1])]

    def test_a_clock_that_went_back_makes_nothing_old(self, world: World) -> None:
        partial = world.open(0)
        assert partial.idle_seconds(now=0.0) == 0.0
        assert world.uploads.collect(0, now=0.0).count == 0


@pytest.mark.parametrize("name", ["", "..", "A" * 64, "a" * 63, "a" * 64 + "/.."])
def test_a_name_that_is_no_digest_begins_nothing(world: World, name: str) -> None:
    with pytest.raises(NotFound, match="64 lowercase"):
        world.uploads.open(name, SIZE)
    assert list((world.root / "uploads").iterdir()) == []


@given(digest=st.text("0123456789abcdef", min_size=64, max_size=64), size=st.integers(0, 10**18 - 1))
def test_an_upload_s_name_says_what_it_is(digest: str, size: int) -> None:
    assert parse_name(name_of(digest, size)) == (digest, size)


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "a" * 64 + "-", "a" * 64 + "--1", "a" * 63 + "-1", "A" * 64 + "-1", "a" * 64 + "-1 "]
)
def test_any_other_name_is_no_upload(name: str) -> None:
    with pytest.raises(ValueError, match="names no upload"):
        parse_name(name)


def test_the_same_blob_of_another_size_is_another_upload(world: World) -> None:
    digest = digest_bytes(DATA[0])
    world.feed(0, (0, SIZE))
    liar = world.uploads.open(digest, SIZE + 1)
    assert liar.missing()[0].size_bytes == SIZE + 1
    assert world.uploads.find(digest, SIZE) is not liar
    assert world.uploads.open(digest, SIZE + 1) is liar


@pytest.mark.parametrize("damage", ["no list", "no bytes", "shorter", "longer", "garbage", "beyond"])
def test_what_does_not_belong_together_is_removed_at_the_start(world: World, damage: str) -> None:
    world.feed(0, (0, 30))
    world.feed(1, (0, 30))
    name = name_of(digest_bytes(DATA[0]), SIZE)
    part, ranges = (world.root / "uploads" / f"{name}.{suffix}" for suffix in ("part", "ranges"))
    match damage:
        case "no list":
            ranges.unlink()
        case "no bytes":
            part.unlink()
        case "shorter":
            part.write_bytes(b"x" * (SIZE - 1))
        case "longer":
            part.write_bytes(b"x" * (SIZE + 1))
        case "garbage":
            ranges.write_bytes(b"0-ten\n")
        case "beyond":
            ranges.write_bytes(b"0-61\n")
    world.restart()
    del world.model[0]
    world.check()
