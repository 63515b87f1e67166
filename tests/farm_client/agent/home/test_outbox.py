"""What waits in the outbox is there again after a restart, whole or not at all, and within its bounds."""

import os

import pytest

from farm_client.agent.home import outbox as outbox_module
from farm_client.agent.home.outbox import MAX_ENTRIES, Outbox, Parcel
from protocol.assignments import Result
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef

DATA = b"update" * 100


@pytest.fixture
def notes():
    return []


@pytest.fixture
def open_outbox(tmp_path, notes):
    def open_one(farm="ws://farm", client_id="c1", max_bytes=10**6):
        root = tmp_path / "outbox"
        root.mkdir(exist_ok=True)
        return Outbox(root, farm, client_id, max_bytes, notes.append)

    return open_one


def inline(name, data=DATA, round_number=3):
    update = BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data)
    return Parcel(Result(assignment_id=name, fence=7, samples=5, metrics={"loss": 0.5}, update=update), round_number)


def in_file(name, tmp_path, data=DATA):
    path = tmp_path / "made by an executor"
    path.write_bytes(data)
    update = BlobRef(digest=digest_bytes(data), size_bytes=len(data))
    return Parcel(Result(assignment_id=name, fence=7, samples=5, update=update), 3, path)


def files(tmp_path):
    return sorted(p for p in (tmp_path / "outbox").rglob("*") if p.is_file())


def test_an_entry_is_read_as_it_was_put_also_by_the_next_process(open_outbox):
    parcel = inline("a1")
    first = open_outbox()
    assert first.put(parcel) == parcel
    for box in (first, open_outbox()):
        assert "a1" in box
        assert box.read("a1") == parcel
        assert [(h.assignment_id, h.fence, h.finished) for h in box.held()] == [("a1", 7, True)]


def test_an_evaluations_result_waits_too(open_outbox):
    open_outbox().put(Parcel(Result(assignment_id="e1", fence=1, samples=2), 4))
    box = open_outbox()
    assert box.read("e1").result.update is None


def test_an_executors_file_is_taken_over(open_outbox, tmp_path):
    parcel = in_file("a1", tmp_path)
    kept = open_outbox().put(parcel)
    assert not parcel.path.exists()
    assert kept.path.read_bytes() == DATA
    assert open_outbox().read("a1") == kept


def test_what_is_settled_leaves_nothing(open_outbox, tmp_path):
    box = open_outbox()
    box.put(in_file("a1", tmp_path))
    box.put(inline("a2"))
    assert not box.emptied.is_set()
    box.remove("a1")
    box.remove("a2")
    box.remove("never there")
    assert box.emptied.is_set()
    assert files(tmp_path) == []
    assert open_outbox().held() == ()


def test_the_oldest_come_first_through_restarts(open_outbox):
    open_outbox().put(inline("a1"))
    open_outbox().put(inline("a2"))
    box = open_outbox()
    box.put(inline("a3"))
    assert box.assignment_ids() == open_outbox().assignment_ids() == ("a1", "a2", "a3")


def test_too_many_drop_the_oldest_with_a_note(open_outbox, notes, tmp_path):
    box = open_outbox()
    for number in range(MAX_ENTRIES + 2):
        box.put(inline(f"a{number}"))
    assert box.assignment_ids()[0] == "a2"
    assert len(files(tmp_path)) == MAX_ENTRIES
    assert len(notes) == 2


def test_too_many_bytes_drop_the_oldest_and_never_the_newest(open_outbox, notes):
    box = open_outbox(max_bytes=2 * len(DATA))
    for name in ("a1", "a2", "a3"):
        box.put(inline(name))
    assert box.assignment_ids() == ("a2", "a3")
    box.put(inline("large", DATA * 5))
    assert box.assignment_ids() == ("large",)
    assert "full" in notes[0]


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_record_that_was_cut_is_dropped_with_a_note(open_outbox, notes, tmp_path, end):
    box = open_outbox()
    box.put(inline("a1"))
    box.put(inline("a2"))
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:end])
    assert box.read("a1") is None
    assert open_outbox().assignment_ids() == ("a2",)
    assert "damaged" in notes[0]
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("place", [20, 200, 600])
def test_a_flipped_bit_is_seen_or_harmless(open_outbox, tmp_path, place):
    open_outbox().put(inline("a1"))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    for name in (box := open_outbox()).assignment_ids():
        update = box.read(name).result.update
        assert digest_bytes(update.inline) == update.digest


def test_an_update_file_that_was_cut_is_dropped(open_outbox, notes, tmp_path):
    kept = open_outbox().put(in_file("a1", tmp_path))
    kept.path.write_bytes(DATA[:10])
    assert open_outbox().held() == ()
    assert "cut short" in notes[0]
    assert files(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_cleared(open_outbox, tmp_path):
    box = open_outbox()
    box.put(inline("a1"))
    (folder,) = (tmp_path / "outbox").iterdir()
    (folder / "00000009-3.part").write_bytes(b"half")
    (folder / "00000010.update").write_bytes(b"without a record")
    assert open_outbox().assignment_ids() == ("a1",)
    assert len(files(tmp_path)) == 1


def test_each_farm_and_identity_has_its_own(open_outbox):
    open_outbox().put(inline("a1"))
    assert open_outbox(farm="ws://other").held() == ()
    assert open_outbox(client_id="c2").held() == ()
    assert len(open_outbox().held()) == 1


def test_farms_of_long_ago_are_forgotten(open_outbox, tmp_path):
    open_outbox(farm="ws://old").put(inline("a1"))
    (old,) = (tmp_path / "outbox").iterdir()
    os.utime(old, (0, 0))
    open_outbox()
    assert not old.exists()


def test_a_full_disk_keeps_the_result_in_memory_with_a_note(open_outbox, notes, monkeypatch, tmp_path):
    box = open_outbox()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outbox_module.Path, "write_bytes", full)
    parcel = inline("a1")
    assert box.put(parcel) == parcel
    assert box.read("a1") == parcel
    assert "No space left" in notes[0]
    box.remove("a1")
    assert files(tmp_path) == []
