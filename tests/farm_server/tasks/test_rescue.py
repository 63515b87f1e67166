"""A damaged checkpoint: the newest intact one before it is chosen, and what is damaged goes, on real files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.commands import OpenRound
from coordinator.events import AggregationFailed, CheckpointDamaged, Event
from coordinator.lifecycle import AssignmentState, TaskState
from coordinator.records import CheckpointRecord
from farm_server.tasks.rescue import Rescue
from protocol.errors import Unavailable
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore, NewCheckpoint
from storage.memory_ledger import MemoryLedger
from tests.storage import records

WHY = "the weights of round 3 are not what was written"


class StoppedClock:
    def now(self) -> float:
        return 99.0


class Bench:
    """A task of which three rounds are committed, and what the rescue tells the coordinator."""

    def __init__(self, folder: Path) -> None:
        self.blobs = FolderBlobStore(folder / "blobs")
        self.store = CheckpointStore(self.blobs)
        self.ledger = MemoryLedger()
        self.told: list[Event] = []
        self.kept: list[CheckpointRecord] = []

    async def train(self, rounds: int = 3) -> None:
        """Commit so many rounds, each by one client."""
        await self.ledger.save([records.client()])
        await self.ledger.save([records.task(state=TaskState.RUNNING, version=rounds)])
        for number in range(1, rounds + 1):
            new = NewCheckpoint(
                "t1",
                round=number,
                epoch=0,
                cursor=10 * number,
                weights=[f"weights {number}".encode()],
                optimizer=[f"moments {number}".encode()],
                created_at=float(number),
                metrics={},
            )
            self.kept.append(self.store.write(new).record)
            counted = records.assignment(
                f"a{number}", round=number - 1, state=AssignmentState.DELIVERED, counted=True, counted_in=number - 1
            )
            await self.ledger.save([records.round_(number=number - 1), counted, self.kept[-1]])

    def damage(self, number: int, what: str = "weights") -> Path:
        """Change a byte of a round's blob; return the file."""
        path = self.blobs.path(getattr(self.kept[number - 1], what).digest)
        path.chmod(0o600)
        path.write_bytes(b"X" + path.read_bytes()[1:])
        return path

    async def rescued(self) -> Event:
        """Open round 3, whose checkpoint can't be read, and return what the coordinator is told."""

        async def ask(event: Event) -> None:
            self.told.append(event)

        rescue = Rescue(ledger=self.ledger, blobs=self.blobs, checkpoints=self.store, clock=StoppedClock(), ask=ask)
        command = OpenRound("t1", len(self.kept), 2, records.spec("t1"), self.kept[-1])
        rescue.begin(command, WHY)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "rescue"))
        await rescue.close()
        (event,) = self.told
        return event


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    await bench.train()
    return bench


async def test_the_round_before_takes_its_place_and_what_it_counted_is_undone(bench: Bench) -> None:
    bench.damage(3)
    event = await bench.rescued()
    assert isinstance(event, CheckpointDamaged)
    assert (event.task_id, event.round, event.attempt, event.message) == ("t1", 3, 2, WHY)
    assert event.fallback == bench.kept[1]
    assert [one.assignment_id for one in event.undone] == ["a3"]


async def test_damaged_bytes_are_removed_so_that_the_same_ones_can_be_stored_again(bench: Bench) -> None:
    path = bench.damage(3)
    await bench.rescued()
    assert not path.exists()
    assert bench.store.damage(bench.kept[1]) is None
    assert bench.blobs.has(bench.kept[2].optimizer.digest), "what is intact stays"


@pytest.mark.parametrize("what", ["weights", "optimizer", "manifest"])
async def test_what_is_damaged_in_the_round_before_sends_it_one_further_back(bench: Bench, what: str) -> None:
    bench.damage(3)
    bench.damage(2, what)
    event = await bench.rescued()
    assert isinstance(event, CheckpointDamaged)
    assert event.fallback == bench.kept[0]
    assert sorted(one.assignment_id for one in event.undone) == ["a2", "a3"]


async def test_a_file_that_is_gone_is_damage_too(bench: Bench) -> None:
    bench.damage(3)
    bench.damage(2).unlink()
    event = await bench.rescued()
    assert isinstance(event, CheckpointDamaged)
    assert event.fallback == bench.kept[0]


async def test_without_an_intact_one_nothing_is_removed_and_nothing_undone(bench: Bench) -> None:
    paths = [bench.damage(number) for number in (1, 2, 3)]
    event = await bench.rescued()
    assert event == CheckpointDamaged("t1", 3, 2, WHY, None)
    assert all(path.exists() for path in paths), "a person may still save them"


async def test_the_author_reads_in_the_log_what_is_trained_again(bench: Bench) -> None:
    bench.damage(3)
    bench.damage(2)
    await bench.rescued()
    (numbered,) = await bench.ledger.logs("t1")
    line = numbered.entry
    assert (line.at, line.stream, line.client_name) == (99.0, "error", "server")
    assert line.text == f"CHECKPOINT DAMAGED: {WHY}; back to round 1, rounds to train again: 2"


async def test_a_ledger_that_fails_leaves_the_round_failed_with_both_reasons(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_task_id: str) -> list[CheckpointRecord]:
        raise Unavailable("the disk is full")

    monkeypatch.setattr(bench.ledger, "checkpoints", fails)
    event = await bench.rescued()
    assert event == AggregationFailed("t1", 3, 2, f"{WHY}; the disk is full")


async def test_a_defect_in_it_is_told_by_its_type(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_record: CheckpointRecord) -> str | None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(bench.store, "damage", fails)
    event = await bench.rescued()
    assert isinstance(event, AggregationFailed)
    assert "ZeroDivisionError('planted')" in event.message


async def test_closing_ends_a_search_that_is_under_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.Event()

    async def never(_task_id: str) -> list[CheckpointRecord]:
        began.set()
        await asyncio.Event().wait()
        return []

    async def ask(event: Event) -> None:
        bench.told.append(event)

    monkeypatch.setattr(bench.ledger, "checkpoints", never)
    rescue = Rescue(ledger=bench.ledger, blobs=bench.blobs, checkpoints=bench.store, clock=StoppedClock(), ask=ask)
    rescue.begin(OpenRound("t1", 3, 2, records.spec("t1"), bench.kept[-1]), WHY)
    await began.wait()
    await rescue.close()
    assert bench.told == []
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "rescue"]
