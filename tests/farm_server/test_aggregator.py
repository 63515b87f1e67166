from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from coordinator.commands import CommitRound, DropRound, Fold, OpenRound, ReleaseTask
from coordinator.events import AggregationFailed, CheckpointDamaged, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from farm_server.aggregator import Aggregator
from farm_server.checkpoint_writer import CheckpointWriter
from farm_server.spooled_updates import SpooledUpdates
from farm_server.torch_side import TorchSide
from protocol.errors import Unavailable
from protocol.recipe import OuterOptimizer, Recipe
from protocol.tasks import BlobRef, TaskSpec
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore
from tests.farm_server import model
from tests.farm_server.test_runtime import StillClock


class Bench:
    """An aggregator whose outcomes are taken one by one."""

    def __init__(self, root: Path, **outer: object) -> None:
        self.blobs = FolderBlobStore(root / "blobs")
        self.spooled = SpooledUpdates(self.blobs)
        self.checkpoints = CheckpointStore(self.blobs)
        self.outcomes: queue.Queue[Event] = queue.Queue()
        self.weights: list[bytes] = []
        self.small: list[dict[str, bytes]] = []
        self.full: str | None = None
        self.aggregator = Aggregator(
            checkpoints=self.checkpoints,
            writer=CheckpointWriter(self.checkpoints, StillClock(), self.claim, retry_seconds=0.01),
            spooled=self.spooled,
            torch_side=TorchSide(1),
            outcomes=self,
            threads=2,
        )
        self.spec = model.spec(recipe=Recipe(rounds=3, outer=OuterOptimizer(**{"options": {"lr": 1.0}} | outer)))
        weights = self.blobs.put_bytes(model.weights())
        self.checkpoint = CheckpointRecord("t", 0, 0, 0, weights, None, None, 0.0)

    def event(self, event: Event) -> None:
        self.outcomes.put(event)

    def damaged(self, command: OpenRound, message: str) -> None:
        self.outcomes.put(CheckpointDamaged(command.task_id, command.round, command.attempt, message, None))

    def claim(self, size_bytes: int) -> None:
        if self.full is not None:
            raise Unavailable(self.full)

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: float
    ) -> None:
        self.small.append(dict(small))
        self.weights.append(self.blobs.read(checkpoint.weights.digest))

    def outcome(self) -> Event:
        return self.outcomes.get(timeout=60)

    def open(self, number: int = 0, attempt: int = 1) -> None:
        self.aggregator.open_round(OpenRound("t", number, attempt, self.spec, self.checkpoint))

    def fold(
        self,
        data: bytes,
        samples: int = 1,
        *,
        number: int = 0,
        attempt: int = 1,
        spool: bool = False,
        scale: float = 1.0,
    ) -> BlobRef:
        bare = self.blobs.put_bytes(data) if spool else model.ref(data)
        update = bare if spool else BlobRef(digest=bare.digest, size_bytes=bare.size_bytes, inline=data)
        self.spooled.hold(update)
        self.aggregator.fold(Fold("t", number, attempt, "a", update, samples, scale))
        return update

    def commit(self, number: int = 0, attempt: int = 1) -> Event:
        self.aggregator.commit_round(CommitRound("t", number, attempt, 0, 64))
        return self.outcome()

    def round(self, number: int, *updates: tuple[float, int]) -> RoundAggregated:
        self.open(number)
        for value, samples in updates:
            self.fold(model.update(value), samples, number=number)
        event = self.commit(number)
        assert isinstance(event, RoundAggregated), event
        self.checkpoint = event.checkpoint
        return event


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.aggregator.close()


def test_a_round_is_the_weighted_mean_and_its_checkpoint_is_durable(bench):
    event = bench.round(0, (1.0, 3), (5.0, 1))
    assert (event.checkpoint.round, event.checkpoint.cursor, event.checkpoint.created_at) == (1, 64, 5.0)
    files = bench.checkpoints.open(event.checkpoint)
    weights = files.weights.read_bytes()
    np.testing.assert_allclose(model.values(weights), -2.0)
    assert files.optimizer is None
    assert bench.weights == [weights]
    assert bench.small == [{event.checkpoint.weights.digest: weights}]


def test_weights_keep_their_header_so_that_equal_weights_are_equal_files(bench):
    bench.round(0, (0.0, 1))
    assert bench.weights == [model.weights()]


def test_momentum_survives_that_the_task_leaves_memory(tmp_path):
    through, apart = Bench(tmp_path / "a"), Bench(tmp_path / "b")
    for made in (through, apart):
        made.spec = model.spec(recipe=Recipe(rounds=3, outer=OuterOptimizer(options={"lr": 1.0, "momentum": 0.9})))
        for number in range(3):
            made.round(number, (1.0, 1))
            if made is apart:
                made.aggregator.release_task(ReleaseTask("t"))
        made.aggregator.close()
    np.testing.assert_allclose(model.values(through.weights[-1]), -(1 + 1.9 + 2.71), rtol=1e-6)
    assert through.weights == apart.weights


def test_a_dropped_round_leaves_no_trace(bench):
    bench.open()
    bench.fold(model.update(100.0))
    bench.aggregator.drop_round(DropRound("t", 0, 1))
    bench.open(attempt=2)
    bench.fold(model.update(1.0), attempt=2)
    bench.commit(attempt=2)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


def test_spooled_updates_are_deleted_once_their_last_user_is_done(bench):
    data = model.update(1.0)
    bench.open()
    update = bench.fold(data, spool=True)
    bench.fold(data, spool=True)
    assert bench.blobs.has(update.digest)
    bench.commit()
    assert not bench.blobs.has(update.digest)


def test_a_disk_that_refuses_the_checkpoint_makes_the_round_wait_and_then_it_goes_on(bench):
    bench.open()
    bench.fold(model.update(1.0))
    bench.full = "no space is left"
    bench.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    eventually(lambda: bench.aggregator.stalled == "no space is left")
    assert bench.outcomes.empty()
    bench.full = None
    assert isinstance(bench.outcome(), RoundAggregated)
    assert bench.aggregator.stalled is None
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


@pytest.mark.parametrize("end", [DropRound("t", 0, 1), ReleaseTask("t")])
def test_a_round_that_waits_for_the_disk_can_be_given_up(bench, end):
    bench.open()
    bench.fold(model.update(1.0))
    bench.full = "no space is left"
    bench.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    eventually(lambda: bench.aggregator.stalled)
    give_up = bench.aggregator.drop_round if isinstance(end, DropRound) else bench.aggregator.release_task
    give_up(end)
    assert bench.outcome() == AggregationFailed("t", 0, 1, "no space is left")
    bench.full = None
    bench.open(attempt=2)
    bench.fold(model.update(3.0), attempt=2)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -3.0)


def test_a_worker_without_memory_fails_the_attempt_and_says_so(bench, monkeypatch):
    def exhausted(*_: object) -> CheckpointRecord:
        raise MemoryError

    bench.open()
    bench.fold(model.update(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(bench.checkpoints, "write", exhausted)
        event = bench.commit()
    assert isinstance(event, AggregationFailed)
    assert "out of memory" in event.message
    bench.open(attempt=2)
    bench.fold(model.update(1.0), attempt=2)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


def test_a_stale_update_weighs_less(bench):
    bench.open()
    bench.fold(model.update(1.0), 2)
    bench.fold(model.update(4.0), 4, scale=0.5)
    bench.commit()
    np.testing.assert_allclose(model.values(bench.weights[-1]), -(1.0 * 2 + 4.0 * 2) / 4)


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_a_damaged_checkpoint_is_told_once(bench, damage):
    path = bench.blobs.path(bench.checkpoint.weights.digest)
    data = path.read_bytes()
    match damage:
        case "changed":
            path.write_bytes(b"?" + data[1:])
        case "truncated":
            path.write_bytes(data[:-1])
        case _:
            path.unlink()
    bench.open()
    event = bench.outcome()
    assert isinstance(event, CheckpointDamaged)
    assert bench.checkpoint.weights.digest in event.message
    update = bench.fold(model.update(), spool=True)
    bench.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    bench.open(attempt=2)
    assert bench.outcome().attempt == 2, "of attempt 1 the coordinator was told already"
    assert not bench.blobs.has(update.digest)


def test_a_commit_without_updates_fails(bench):
    bench.open()
    assert isinstance(bench.commit(), AggregationFailed)
