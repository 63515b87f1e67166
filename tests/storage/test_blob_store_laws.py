"""The folder of blobs against a dictionary: stored, renewed, deleted, damaged and collected in any order."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, NotFound, Unavailable
from storage import blobs as module
from storage.blob_batch import size_of
from storage.blobs import FolderBlobStore, ref_of
from storage.file_digest import digest_of_file

CONTENTS = [b"", b"a", b"bb" * 10, b"c" * 5000]
NOW = 1_000_000.0
GRACE = 100.0

_which = st.integers(0, len(CONTENTS) - 1)
_steps = st.lists(
    st.tuples(st.just("put"), _which, st.just(0))
    | st.tuples(st.sampled_from(["age", "delete", "damage", "renew", "drop_if_damaged"]), _which, st.integers(0, 200))
    | st.tuples(st.just("collect"), _which, st.sets(_which).map(tuple))
    | st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    max_size=20,
)


@dataclass
class Kept:
    """What the model knows of a stored blob."""

    stored_at: float
    intact: bool = True


class World:
    """A store whose clock is ours, beside what it must hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderBlobStore(folder)
        self.model: dict[int, Kept] = {}

    def path(self, which: int) -> Path:
        return self.store.path(digest_bytes(CONTENTS[which]))

    def set_age(self, which: int, age: float) -> None:
        os.utime(self.path(which), (NOW - age, NOW - age))
        self.model[which].stored_at = NOW - age

    def put(self, which: int, _: object) -> None:
        kept = self.model.get(which)
        self.store.put_bytes(CONTENTS[which])
        # bytes that are there already, by their size, are not written again
        same_size = kept is not None and (kept.intact or len(CONTENTS[which]) > 0)
        self.model[which] = Kept(NOW, kept.intact if kept is not None and same_size else True)
        self.set_age(which, 0)

    def age(self, which: int, age: object) -> None:
        if which in self.model:
            self.set_age(which, float(str(age)))

    def delete(self, which: int, _: object) -> None:
        self.store.delete(digest_bytes(CONTENTS[which]))
        self.model.pop(which, None)

    def damage(self, which: int, _: object) -> None:
        """Flip the first byte: the size stays, as bit rot leaves it."""
        kept = self.model.get(which)
        if kept is None or not CONTENTS[which]:
            return
        path = self.path(which)
        age = NOW - kept.stored_at
        data = bytearray(CONTENTS[which])
        data[0] ^= 1
        path.write_bytes(data)
        kept.intact = False
        self.set_age(which, age)

    def renew(self, which: int, _: object) -> None:
        assert self.store.renew(digest_bytes(CONTENTS[which])) == (which in self.model)
        if which in self.model:
            self.set_age(which, 0)

    def drop_if_damaged(self, which: int, _: object) -> None:
        kept = self.model.get(which)
        is_damaged = kept is not None and not kept.intact
        assert self.store.drop_if_damaged(digest_bytes(CONTENTS[which])) == is_damaged
        if is_damaged:
            del self.model[which]

    def collect(self, _: int, referenced: object) -> None:
        assert isinstance(referenced, tuple)
        named = {digest_bytes(CONTENTS[which]) for which in referenced}
        gone = [w for w, kept in self.model.items() if w not in referenced and kept.stored_at < NOW - GRACE]
        would = self.store.collect(named, GRACE, NOW, dry_run=True)
        self.check()  # a dry run removed nothing
        done = self.store.collect(named, GRACE, NOW)
        assert would == done
        assert (done.count, done.bytes) == (len(gone), sum(len(CONTENTS[which]) for which in gone))
        for which in gone:
            del self.model[which]

    def reopen(self, *_: object) -> None:
        (self.folder / "tmp" / "half").write_bytes(b"left by a crash")
        self.store = FolderBlobStore(self.folder)
        assert self.store.leftovers == 1

    def check(self) -> None:
        for which, data in enumerate(CONTENTS):
            digest, kept = digest_bytes(data), self.model.get(which)
            assert self.store.has(digest) == (kept is not None)
            if kept is not None and kept.intact:
                assert self.store.read(digest) == data
                assert self.store.verified(digest).read_bytes() == data
                assert self.store.size(digest) == len(data)
            elif kept is not None:
                with pytest.raises(DigestMismatch, match="is damaged"):
                    self.store.read(digest)
                with pytest.raises(DigestMismatch, match="is damaged"):
                    self.store.verified(digest)
        assert list((self.folder / "tmp").iterdir()) == []


@settings(max_examples=40)
@given(steps=_steps)
def test_the_store_does_what_a_dictionary_would(steps: list[tuple[str, int, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "blobs")
        for name, which, argument in steps:
            getattr(world, name)(which, argument)
            world.check()


@pytest.fixture
def store(tmp_path: Path) -> FolderBlobStore:
    return FolderBlobStore(tmp_path / "blobs")


class TestDropIfDamaged:
    """Damage is removed so that the blob can be stored again, and never a blob that was stored meanwhile."""

    def test_one_that_is_stored_again_while_it_is_read_stays(
        self, store: FolderBlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ref = store.put_bytes(b"weights")
        store.path(ref.digest).write_bytes(b"Weights")
        read = digest_of_file

        def meanwhile(path: Path) -> str:
            found = read(path)
            path.unlink()
            store.put_bytes(b"weights")
            return found

        monkeypatch.setattr(module, "digest_of_file", meanwhile)
        assert not store.drop_if_damaged(ref.digest)
        assert store.read(ref.digest) == b"weights"

    def test_one_that_goes_while_it_is_read_is_no_error(
        self, store: FolderBlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ref = store.put_bytes(b"weights")

        def meanwhile(path: Path) -> str:
            path.unlink()
            return "another"

        monkeypatch.setattr(module, "digest_of_file", meanwhile)
        assert not store.drop_if_damaged(ref.digest)
        assert not store.has(ref.digest)

    def test_of_nothing_nothing_is_dropped(self, store: FolderBlobStore) -> None:
        assert not store.drop_if_damaged("a" * 64)
        assert not store.drop_if_damaged("no digest")


class TestAdopt:
    """A file that is synced already gets its name."""

    def test_it_is_moved_and_counts_as_just_stored(self, store: FolderBlobStore, tmp_path: Path) -> None:
        path = tmp_path / "made elsewhere"
        path.write_bytes(b"whole")
        os.utime(path, (0, 0))
        store.adopt(path, digest_bytes(b"whole"))
        assert not path.exists()
        assert store.read(digest_bytes(b"whole")) == b"whole"
        assert store.path(digest_bytes(b"whole")).stat().st_mtime > 1e9

    @pytest.mark.parametrize("name", ["..", "/etc/passwd", "A" * 64])
    def test_a_name_that_is_no_digest_takes_no_file(self, store: FolderBlobStore, tmp_path: Path, name: str) -> None:
        path = tmp_path / "mine"
        path.write_bytes(b"mine")
        with pytest.raises(NotFound):
            store.adopt(path, name)
        assert path.read_bytes() == b"mine"

    def test_one_that_is_gone_is_the_disks_refusal(self, store: FolderBlobStore, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match="No such file"):
            store.adopt(tmp_path / "absent", "a" * 64)


def test_names_are_durable_one_by_one_in_the_order_of_the_batch(
    store: FolderBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between two names leaves the earlier one: weights before the manifest that names them."""
    named: list[str] = []
    rename: Callable[[Path, Path], Path] = Path.replace

    def noted(path: Path, target: Path) -> Path:
        named.append(target.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    with store.batch() as batch:
        refs = [batch.add([data]) for data in (b"weights", b"optimizer", b"manifest")]
        assert named == []
    assert named == [ref.digest for ref in refs]


def test_every_file_is_synced_before_any_has_a_name(store: FolderBlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    lock = threading.Lock()
    fsync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        with lock:
            steps.append("sync")
        fsync(handle)

    def named(path: Path, target: Path) -> Path:
        steps.append("name")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    with store.batch() as batch:
        for data in (b"one", b"two", b"three"):
            batch.add([data])
    assert steps[:3] == ["sync"] * 3
    assert steps.index("name") >= 3


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), memoryview(b"b.y.t.e.s.")[::2]])
def test_a_reference_names_the_bytes_whatever_holds_them(data: bytes | bytearray | memoryview) -> None:
    if isinstance(data, memoryview) and not data.c_contiguous:
        data = data.tobytes()
    assert ref_of(data) == ref_of(b"bytes")


@given(st.lists(st.binary(max_size=50)))
def test_chunks_have_the_size_of_their_bytes(chunks: list[bytes]) -> None:
    assert size_of(chunks) == len(b"".join(chunks))
    assert size_of([memoryview(chunk) for chunk in chunks]) == len(b"".join(chunks))


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1])
def test_a_files_digest_does_not_depend_on_the_blocks_it_is_read_in(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    assert digest_of_file(tmp_path / "file") == digest_bytes(data)


def test_a_file_that_is_not_there_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest_of_file(tmp_path / "absent")
