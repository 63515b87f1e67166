"""Whatever is written in whatever order, over kills and restarts: a partial file never claims a byte it has not."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm_client.transfer import partial_file
from farm_client.transfer.partial_file import PartialFile, Sidecar, read_sidecar, remove_partial
from farm_client.transfer.source import open_source, size_of
from farm_client.transfer.tally import Tally
from protocol.digests import digest_bytes
from protocol.errors import Conflict, FarmError
from protocol.ranges import ByteRange, ByteRanges

SIZE = 200
DATA = bytes((n * 7 + 1) % 251 for n in range(SIZE))
DIGEST = digest_bytes(DATA)

_parts = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))
_steps = st.lists(_parts | st.sampled_from(["save", "close", "kill"]), max_size=15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("partial")


def killed(partial: PartialFile) -> None:
    """End it as a kill does: what was not noted is not known."""
    fcntl.flock(partial._file, fcntl.LOCK_UN)
    partial._file.close()


class Model:
    """The bytes that are here, and those that the next run is to know of."""

    def __init__(self) -> None:
        self.here: set[int] = set()
        self.noted: set[int] = set()


@settings(max_examples=60)
@given(steps=_steps)
def test_what_was_noted_is_here_and_what_is_missing_completes_it(folder: Path, steps: list[object]) -> None:
    path = folder / "blob.part"
    remove_partial(path)
    partial, model = PartialFile(path, SIZE), Model()
    for step in steps:
        if isinstance(step, tuple):
            start, end = step
            again = partial.write(start, DATA[start:end])
            assert again == len(model.here & set(range(start, end)))
            model.here |= set(range(start, end))
        elif step == "save":
            partial.save()
            model.noted = set(model.here)
        else:
            if step == "close":
                partial.close()
                model.noted = set(model.here)
            else:
                killed(partial)
            partial = PartialFile(path, SIZE)
            model.here = set(model.noted)
        assert partial.present_bytes == len(model.here)
        assert {at for gap in partial.missing() for at in range(*gap)} == set(range(SIZE)) - model.here
    for gap in partial.missing():
        partial.write(gap.start, DATA[gap.start : gap.end])
    assert partial.hexdigest() == DIGEST
    partial.finish()
    assert path.read_bytes() == DATA
    assert read_sidecar(path) is None


@given(parts=st.lists(_parts, max_size=8), read_on=st.integers(1, 64))
def test_the_digest_on_the_way_is_that_of_the_file(folder: Path, parts: list[tuple[int, int]], read_on: int) -> None:
    path = folder / "hashed.part"
    remove_partial(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial_file, "_READ_ON_BYTES", read_on)
        patch.setattr(partial_file, "_READ_BYTES", max(1, read_on // 3))
        partial = PartialFile(path, SIZE)
        for start, end in [*parts, (0, SIZE)]:
            partial.write(start, DATA[start:end])
        assert partial.hexdigest() == DIGEST
        partial.finish()


class TestSidecar:
    """What is known beside an unfinished file, believed only where it can be true."""

    @pytest.mark.parametrize(
        ("size_bytes", "present", "stored_bytes", "fits"),
        [
            (100, "", 0, True),
            (100, "0-50,70-100", 100, True),
            (100, "0-50", 49, False),  # the file was cut
            (100, "0-101", 200, False),  # more than the blob has
            (100, "50-0", 100, False),
            (100, "zero", 100, False),
            (100, "0-50,", 100, False),
        ],
    )
    def test_it_names_only_bytes_that_are_there(
        self, tmp_path: Path, size_bytes: int, present: str, stored_bytes: int, fits: bool
    ) -> None:
        path = tmp_path / "a.part"
        path.write_bytes(bytes(stored_bytes))
        path.with_name("a.part.json").write_text(json.dumps({"size_bytes": size_bytes, "present": present}))
        found = read_sidecar(path)
        assert (found is not None) == fits
        if found is not None:
            assert found.ranges(stored_bytes) == ByteRanges.parse(present)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"size_bytes": "x", "present": ""}', "\x00" * 50])
    def test_a_damaged_one_is_no_use_and_the_file_begins_anew(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "a.part"
        path.write_bytes(DATA)
        path.with_name("a.part.json").write_text(text)
        assert read_sidecar(path) is None
        partial = PartialFile(path, SIZE)
        assert partial.missing() == [ByteRange(0, SIZE)]
        partial.close()
        assert list(tmp_path.iterdir()) == []  # of nothing nothing is left

    def test_one_of_another_size_is_another_blobs(self, tmp_path: Path) -> None:
        partial = PartialFile(tmp_path / "a.part", SIZE)
        partial.write(0, DATA)
        partial.close()
        other = PartialFile(tmp_path / "a.part", SIZE + 1)
        assert other.present_bytes == 0
        other.close()

    def test_a_huge_number_is_no_range(self) -> None:
        with pytest.raises(ValueError, match="names bytes that are not there"):
            Sidecar(size_bytes=5, present="0-999999999999999999").ranges(10)


def test_only_one_writes_a_file_and_the_next_may_when_it_is_done(tmp_path: Path) -> None:
    first = PartialFile(tmp_path / "a.part", SIZE)
    first.write(0, DATA[:10])
    with pytest.raises(Conflict, match="wait until it is done"):
        PartialFile(tmp_path / "a.part", SIZE)
    first.close()
    second = PartialFile(tmp_path / "a.part", SIZE)
    assert second.present_bytes == 10  # who was refused harmed nothing
    second.close()
    second.close()


def test_damage_is_forgotten_and_fetched_anew(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "a.part", SIZE)
    partial.write(0, b"x" * SIZE)
    partial.save()
    assert partial.hexdigest() != DIGEST
    partial.restart()
    assert (partial.present_bytes, partial.missing()) == (0, [ByteRange(0, SIZE)])
    assert read_sidecar(tmp_path / "a.part") is None  # a kill now must not bring the damage back
    partial.write(0, DATA)
    assert partial.hexdigest() == DIGEST
    partial.close()


def test_a_disk_that_takes_a_byte_at_a_time_gets_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:1], at))
    partial = PartialFile(tmp_path / "a.part", SIZE)
    partial.write(0, bytearray(DATA))
    assert partial.hexdigest() == DIGEST
    partial.close()


def test_a_write_that_the_disk_refuses_is_not_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = PartialFile(tmp_path / "a.part", SIZE)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            partial.write(0, DATA)
    assert partial.present_bytes == 0
    partial.write(0, DATA)
    assert partial.hexdigest() == DIGEST
    partial.close()


class TestSource:
    """Where the bytes of an upload come from."""

    @pytest.mark.parametrize("kind", ["memory", "file"])
    @pytest.mark.parametrize(("start", "count"), [(0, SIZE), (0, 0), (10, 20), (SIZE - 1, 1)])
    def test_any_part_can_be_read_in_any_order(self, tmp_path: Path, kind: str, start: int, count: int) -> None:
        (tmp_path / "blob").write_bytes(DATA)
        content = DATA if kind == "memory" else tmp_path / "blob"
        assert size_of(content) == SIZE
        source = open_source(content)
        assert source.size_bytes == SIZE
        assert source.read(start, count) == DATA[start : start + count]
        assert source.read(0, SIZE) == DATA
        source.close()

    def test_a_file_that_became_shorter_is_told_and_not_padded(self, tmp_path: Path) -> None:
        path = tmp_path / "blob"
        path.write_bytes(DATA)
        source = open_source(path)
        os.truncate(path, 50)
        assert source.read(0, 50) == DATA[:50]
        with pytest.raises(FarmError, match="became shorter"):
            source.read(40, 20)
        source.close()

    def test_a_file_that_was_replaced_is_still_the_one_that_was_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "blob"
        path.write_bytes(DATA)
        source = open_source(path)
        (tmp_path / "other").write_bytes(b"other")
        (tmp_path / "other").replace(path)
        assert source.read(0, SIZE) == DATA
        source.close()

    def test_one_that_is_not_there_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            open_source(tmp_path / "absent")
        with pytest.raises(FileNotFoundError):
            size_of(tmp_path / "absent")


def test_the_tally_tells_each_of_its_numbers() -> None:
    words = Tally(
        sent_bytes=3 << 20, sent_again_bytes=1 << 20, received_bytes=5 << 20, received_again_bytes=0
    ).in_words()
    assert words.startswith("moved: 5.0 MiB fetched (0")
    assert "3.0 MiB sent (1.0 MiB again)" in words
