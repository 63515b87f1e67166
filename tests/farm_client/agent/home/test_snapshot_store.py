"""What an agent keeps of unfinished assignments, and what the next one finds of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_client.agent.home.snapshot_store import SnapshotStore, work_of
from protocol.assignments import Assign, Kind, Slice
from protocol.tasks import BlobRef, Shard, TaskBrief

CODE = BlobRef.carrying(b"code")


def assign(assignment_id: str = "a1", **changes: object) -> Assign:
    task = TaskBrief(
        task_id="t",
        name="t",
        mode="weights",
        code=CODE,
        entry="train.py",
        config={},
        seed=0,
        batch_samples=8,
        dataset_kind="files",
    )
    whole = Assign(
        assignment_id=assignment_id,
        fence=1,
        kind=Kind.TRAIN,
        task=task,
        round=2,
        epoch=0,
        weights=BlobRef.carrying(b"weights"),
        slices=(Slice(shard=Shard(index=0, samples=8, start=0), start=0, stop=8),),
        lease_seconds=60,
    )
    return whole.model_copy(update=changes)


@pytest.fixture
def notes() -> list[str]:
    return []


def store(root: Path, notes: list[str], farm: str = "farm", client: str = "c1") -> SnapshotStore:
    return SnapshotStore(root, farm, client, notes.append)


def snapshot(tmp_path: Path) -> Path:
    """Return a file as it is taken out of an executor's reach."""
    path = tmp_path / "taken"
    path.write_bytes(b"state")
    return path


def test_nothing_is_kept_of_an_executor_that_left_nothing(tmp_path: Path, notes: list[str]) -> None:
    former = store(tmp_path, notes)
    former.keep(assign(), None)
    assert not former.path(assign()).exists()
    assert store(tmp_path, notes).left() == ()


def test_an_unfinished_assignment_is_found_by_the_next_process(tmp_path: Path, notes: list[str]) -> None:
    former = store(tmp_path, notes)
    former.keep(assign(), snapshot(tmp_path))
    later = store(tmp_path, notes)
    assert later.left() == (assign(),)
    assert later.left() == ()
    assert later.path(assign()).read_bytes() == b"state"


def test_what_is_over_leaves_nothing(tmp_path: Path, notes: list[str]) -> None:
    former = store(tmp_path, notes)
    former.keep(assign(), snapshot(tmp_path))
    former.drop(assign())
    former.drop(assign())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store(tmp_path, notes).left() == ()


def test_one_without_the_other_is_removed(tmp_path: Path, notes: list[str]) -> None:
    former = store(tmp_path, notes)
    former.path(assign()).write_bytes(b"a state whose assignment was not kept")
    former.keep(assign(round=7), snapshot(tmp_path))
    former.path(assign(round=7)).unlink()
    (former.path(assign()).parent / "another.part").write_bytes(b"half")
    assert store(tmp_path, notes).left() == ()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_damaged_record_is_dropped_with_a_note(tmp_path: Path, notes: list[str]) -> None:
    former = store(tmp_path, notes)
    state = former.path(assign())
    state.write_bytes(b"state")
    state.with_suffix(".assign").write_bytes(b"\xff\xff")
    assert store(tmp_path, notes).left() == ()
    assert len(notes) == 1
    assert not state.exists()


@pytest.mark.parametrize("other", [{"farm": "another"}, {"client": "c2"}])
def test_another_farm_or_identity_gets_nothing_of_it(tmp_path: Path, notes: list[str], other: dict[str, str]) -> None:
    former = store(tmp_path, notes)
    former.keep(assign(), snapshot(tmp_path))
    assert store(tmp_path, notes, **other).left() == ()
    assert store(tmp_path, notes).left() == ()


def test_a_disk_that_takes_nothing_is_put_up_with(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    hopeless = store(tmp_path / "file" / "below", notes)
    hopeless.keep(assign(), snapshot(tmp_path))
    hopeless.drop(assign())
    assert hopeless.left() == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 3},
        {"epoch": 1},
        {"samples_before": 8},
        {"round_samples": 9},
        {"weights": BlobRef.carrying(b"others")},
        {"inner_state": BlobRef.carrying(b"state")},
        {"slices": (Slice(shard=Shard(index=0, samples=8, start=0), start=0, stop=7),)},
        {"kind": Kind.EVALUATE},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_work_has_another_name(changes: dict[str, object]) -> None:
    assert work_of(assign(**changes)) != work_of(assign())


def test_the_same_work_has_one_name_whoever_it_is_offered_to() -> None:
    again = assign("a2", fence=9, lease_seconds=5, weights=BlobRef.carrying(b"weights").bare())
    assert work_of(again) == work_of(assign())
