"""Which blobs are needed and what they weigh, for farms made up at random, against rules written out in Python."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import AssignmentRecord, CheckpointRecord, Record, RoundRecord, RoundState, TaskRecord
from protocol.tasks import BaseFile, BlobRef, Dataset, Shard
from storage.blobs import FolderBlobStore
from storage.inspection import inspect_blobs, load_snapshot, referenced_by
from storage.ledger import SqlLedger
from tests.storage import records as a

NAMES = ("t1", "t2")
_refs = st.integers(0, 9).map(lambda n: a.ref("blob" * (n + 1)))
"""Few, so that tasks share some."""
_maybe = st.none() | _refs


@st.composite
def _tasks(draw: st.DrawFn, name: str) -> TaskRecord:
    shards = [Shard(index=n, samples=5, blob=draw(_refs)) for n in range(draw(st.integers(1, 3)))]
    spec = a.spec(
        name,
        code=draw(_refs),
        initial_weights=draw(_refs),
        frozen=draw(_maybe),
        environment=draw(_maybe),
        base=tuple(BaseFile(path=f"{n}", blob=draw(_refs)) for n in range(draw(st.integers(0, 2)))),
        dataset=Dataset(kind="files", shards=tuple(shards)),
    )
    return a.task(name, spec=spec, state=draw(st.sampled_from(TaskState)), version=99)


@dataclass
class Farm:
    """What its ledger holds, as records by their keys."""

    tasks: list[TaskRecord]
    rounds: dict[tuple[str, int], RoundRecord] = field(default_factory=dict)
    assignments: list[AssignmentRecord] = field(default_factory=list)
    checkpoints: dict[tuple[str, int], CheckpointRecord] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [*self.tasks, *self.rounds.values(), *self.assignments, *self.checkpoints.values()]

    def needed(self) -> set[str]:
        """Say which blobs must stay."""
        refs: list[BlobRef | None] = []
        for task in self.tasks:
            refs += [task.spec.initial_weights, task.spec.frozen, *(file.blob for file in task.spec.base)]
            if task.state not in (TaskState.COMPLETED, TaskState.CANCELLED):
                refs += [task.spec.code, task.spec.environment, *(shard.blob for shard in task.spec.dataset.shards)]
        for one in self.checkpoints.values():
            refs += [one.weights, one.optimizer, one.inner_state, one.manifest]
        for assignment in self.assignments:
            its_round = self.rounds.get((assignment.task_id, assignment.round))
            is_open = its_round is not None and its_round.state is RoundState.OPEN
            if is_open and its_round.attempt == assignment.attempt and not assignment.counted:
                refs.append(assignment.update)
        return {ref.digest for ref in refs if ref is not None}

    def blob_bytes(self, name: str) -> int:
        """Count what a task's submission and checkpoints name, each blob once."""
        spec = next(task.spec for task in self.tasks if task.task_id == name)
        refs = [spec.code, spec.environment, spec.initial_weights, spec.frozen, *(file.blob for file in spec.base)]
        refs += [*(shard.blob for shard in spec.dataset.shards)]
        for (task, _), one in self.checkpoints.items():
            refs += [one.weights, one.optimizer, one.inner_state, one.manifest] if task == name else []
        return sum({ref.digest: ref.size_bytes for ref in refs if ref is not None}.values())


@st.composite
def _farms(draw: st.DrawFn) -> Farm:
    farm = Farm([draw(_tasks(name)) for name in NAMES])
    ids, numbers, attempts = st.sampled_from(NAMES), st.integers(0, 2), st.integers(1, 2)
    for _ in range(draw(st.integers(0, 4))):
        one = a.round_(draw(ids), draw(numbers), state=draw(st.sampled_from(RoundState)), attempt=draw(attempts))
        farm.rounds[one.task_id, one.number] = one
    for number in range(draw(st.integers(0, 6))):
        farm.assignments.append(
            a.assignment(
                f"a{number}",
                draw(ids),
                round=draw(numbers),
                attempt=draw(attempts),
                state=draw(st.sampled_from(AssignmentState)),
                counted=draw(st.booleans()),
                update=draw(_maybe),
            )
        )
    for _ in range(draw(st.integers(0, 3))):
        made = a.checkpoint(
            draw(ids),
            draw(numbers),
            weights=draw(_refs),
            optimizer=draw(_maybe),
            inner_state=draw(_maybe),
            manifest=draw(_maybe),
        )
        farm.checkpoints[made.task_id, made.round] = made
    farm.lines = draw(st.lists(ids, max_size=5))
    return farm


async def _recorded(path: Path, farm: Farm) -> SqlLedger:
    ledger = await SqlLedger.open(path)
    await ledger.save(farm.records, [a.log(task_id=name) for name in farm.lines])
    return ledger


async def _check(path: Path, farm: Farm) -> None:
    ledger = await _recorded(path, farm)
    assert await ledger.referenced_digests() == farm.needed()
    rows = Counter(farm.lines) + Counter(one.task_id for one in farm.assignments)
    told = {one.task_id: (one.blob_bytes, one.rows) for one in await ledger.usage()}
    assert told == {name: (farm.blob_bytes(name), rows[name]) for name in NAMES}
    sizes = [(one.blob_bytes, one.rows) for one in await ledger.usage()]
    assert sizes == sorted(sizes, reverse=True)
    await ledger.close()


@settings(max_examples=20)
@given(farm=_farms())
def test_no_needed_blob_is_unnamed_and_no_unneeded_one_named(blank_ledger: Path, farm: Farm) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(blank_ledger, Path(folder) / "farm.db")
        asyncio.run(_check(Path(folder) / "farm.db", farm))


class TestInspection:
    """A ledger's file and its blobs looked at from outside, as the doctor and a backup do."""

    def test_agrees_with_the_open_ledger(self, tmp_path: Path) -> None:
        farm = Farm([a.task("t1"), a.task("t2", state=TaskState.CANCELLED)])
        asyncio.run(_closed(tmp_path / "farm.db", farm))
        assert referenced_by(tmp_path / "farm.db") == farm.needed()
        assert {task.task_id for task in load_snapshot(tmp_path / "farm.db").tasks} == {"t1"}, "who ended is not loaded"

    def test_counts_what_is_missing_damaged_superfluous_and_half_written(self, tmp_path: Path) -> None:
        store = FolderBlobStore(tmp_path / "blobs")
        whole, damaged = store.put_bytes(b"whole"), store.put_bytes(b"damaged")
        missing = a.ref("missing")
        spec = a.spec(code=whole, initial_weights=damaged, dataset=Dataset(kind="files", shards=(
            Shard(index=0, samples=1, blob=missing),
        )))  # fmt: skip
        asyncio.run(_closed(tmp_path / "farm.db", Farm([a.task(spec=spec)])))
        store.path(damaged.digest).write_bytes(b"Damaged")
        store.put_bytes(b"nobody's")
        (tmp_path / "blobs" / "tmp" / "half").write_bytes(b"ha")
        found = inspect_blobs(tmp_path / "farm.db", tmp_path / "blobs")
        assert found.unreadable == tuple(sorted([missing.digest, damaged.digest]))
        assert (found.needed, found.orphans, found.half_written) == (3, 1, 1)

    def test_changes_no_byte(self, tmp_path: Path) -> None:
        asyncio.run(_closed(tmp_path / "farm.db", Farm([a.task()])))
        before = (tmp_path / "farm.db").read_bytes()
        referenced_by(tmp_path / "farm.db")
        load_snapshot(tmp_path / "farm.db")
        assert (tmp_path / "farm.db").read_bytes() == before


async def _closed(path: Path, farm: Farm) -> None:
    await (await _recorded(path, farm)).close()
