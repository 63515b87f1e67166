from __future__ import annotations

import errno
import io
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from coordinator.commands import CommitRound, DropRound, ReleaseTask
from coordinator.events import AggregationFailed, CheckpointDamaged, RoundAggregated
from protocol.recipe import Recipe
from storage import blob_batch
from storage.checkpoints import WrittenCheckpoint
from tests.farm_server import model
from tests.farm_server.tensors.aggregator_bench import Bench


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


ROBUST = [{"aggregate": "median"}, {"aggregate": "trimmed_mean", "trim_share": 0.2}]


@pytest.mark.parametrize("spool", [False, True])
@pytest.mark.parametrize("chosen", ROBUST)
def test_a_robust_aggregate_reads_updates_at_the_commit_and_leaves_the_liar_out(bench, chosen, spool):
    bench.start_from(model.weights(), Recipe(rounds=3, min_clients=3, **chosen))
    for number in range(2):
        bench.open(number)
        kept = [
            bench.fold(model.update(value), samples, number=number, spool=spool)
            for value, samples in ((1.0, 1), (-1e20, 5000), (2.0, 3), (4.0, 1), (3.0, 2))
        ]
        assert all(bench.blobs.has(update.digest) is spool for update in kept)
        bench.commit(number)
        assert not any(bench.blobs.has(update.digest) for update in kept)
    step = 2.0 if chosen["aggregate"] == "median" else (1.0 + 2.0 + 3.0) / 3
    np.testing.assert_allclose(model.values(bench.weights[-1]), -2 * step)


def test_the_parts_of_one_client_are_one_vote(bench):
    bench.start_from(model.weights(), Recipe(rounds=3, min_clients=3, aggregate="median"))
    bench.open()
    for value, samples, client in ((1.0, 1, "a"), (2.0, 3, "b"), (-1e20, 50, "liar"), (-1e20, 50, "liar")):
        bench.fold(model.update(value), samples, client=client)
    bench.commit()
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


def test_the_centre_of_clipping_is_a_part_of_the_checkpoint(bench):
    recipe = Recipe(rounds=3, min_clients=3, aggregate="centered_clipping", outer={"options": {"lr": 1.0}})
    bench.start_from(model.weights(), recipe)
    for number, restarts in enumerate((False, True)):
        if restarts:
            bench.aggregator.release_task(ReleaseTask("t"))
        bench.open(number)
        for value in (1.0, 2.0, 9.0):
            bench.fold(model.update(value), number=number)
        bench.commit(number)
    # from 0: (1 + 2 + 2) / 3, cut to the norm of 2; from there, to the distance of 2 / 3: (1 + 2 + 7 / 3) / 3
    np.testing.assert_allclose(model.values(bench.weights[-1]), -(5 / 3 + 16 / 9), rtol=1e-6)


@pytest.mark.parametrize("restarts", [False, True])
def test_updates_are_turned_towards_the_outer_momentum_after_a_restart_too(bench, restarts):
    bench.start_from(model.weights(), Recipe(rounds=3, buffer=1, outer={"name": "heloco", "options": {"lr": 1.0}}))
    for number, value in enumerate((1.0, -1.0)):
        if restarts:
            bench.aggregator.release_task(ReleaseTask("t"))
        bench.open(number)
        bench.fold(model.update(value), number=number)
        bench.commit(number)
    first = 0.1  # the momentum after an update of 1, beside which one of -1 has a confidence of 1 / (1 + 3 first)
    turned = -1 + 0.5 / (1 + 3 * first)
    last = 0.9 * first + 0.1 * turned
    stepped = -(1 + 0.9 * first) - (turned + 0.9 * last)
    np.testing.assert_allclose(model.values(bench.weights[-1]), stepped - 0.9 * last, rtol=1e-5)


@pytest.mark.parametrize("chosen", ROBUST)
def test_a_dropped_round_leaves_no_vote(bench, chosen):
    bench.start_from(model.weights(), Recipe(rounds=3, min_clients=3, **chosen))
    bench.open()
    dropped = [bench.fold(model.update(value), spool=True) for value in (100.0, 101.0, 102.0)]
    bench.aggregator.drop_round(DropRound("t", 0, 1))
    bench.open(attempt=2)
    for value in (1.0, 2.0, 3.0):
        bench.fold(model.update(value), attempt=2)
    bench.commit(attempt=2)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -2.0)
    assert not any(bench.blobs.has(update.digest) for update in dropped)


def test_an_update_that_is_gone_at_the_commit_fails_the_attempt_and_the_next_one_is_sound(bench):
    bench.start_from(model.weights(), Recipe(rounds=3, min_clients=3, aggregate="median"))
    bench.open()
    gone = [bench.fold(model.update(value), spool=True) for value in (1.0, 2.0, 3.0)][1]
    bench.blobs.delete(gone.digest)
    event = bench.commit()
    assert isinstance(event, AggregationFailed)
    bench.open(attempt=2)
    for value in (1.0, 5.0, 3.0):
        bench.fold(model.update(value), attempt=2, spool=True)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -3.0)


def test_weights_keep_their_header_so_that_equal_weights_are_equal_files(bench):
    bench.round(0, (0.0, 1))
    assert bench.weights == [model.weights()]


def test_momentum_survives_that_the_task_leaves_memory(tmp_path):
    momentum = {"lr": 1.0, "momentum": 0.9}
    through, apart = Bench(tmp_path / "a", options=momentum), Bench(tmp_path / "b", options=momentum)
    for made in (through, apart):
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


@pytest.fixture
def large(bench, monkeypatch):
    """A bench where no version fits into a message."""
    monkeypatch.setattr("farm_server.tensors.aggregator.INLINE_BYTES", 0)
    monkeypatch.setattr("farm_server.tensors.aggregator.SMALL_STATE_BYTES", 0)
    return bench


def test_rounds_go_on_while_the_disk_refuses_and_the_newest_version_is_written_then(bench):
    bench.full = "no space is left"
    for number in range(4):
        bench.open(number)
        bench.fold(model.update(1.0), number=number)
        bench.aggregator.commit_round(CommitRound("t", number, 1, 0, 64))
        event = bench.outcome()
        assert isinstance(event, RoundAggregated)
        assert event.checkpoint.manifest is None
        assert not bench.blobs.has(event.checkpoint.weights.digest)
        np.testing.assert_allclose(model.values(bench.small[-1][event.checkpoint.weights.digest]), -1.0 - number)
        bench.checkpoint = event.checkpoint
    eventually(lambda: bench.aggregator.stalled == "no space is left")
    assert bench.durables.empty()
    bench.full = None
    written = bench.written_outcome()
    if written.checkpoint.round < 4:  # the disk had room before that one was given up
        written = bench.written_outcome()
    assert (written.checkpoint.round, written.attempt) == (4, 1)
    assert len(bench.written) <= 2, "nothing queues up"
    eventually(lambda: bench.aggregator.stalled is None)
    files = bench.checkpoints.open(written.checkpoint)
    np.testing.assert_allclose(model.values(files.weights.read_bytes()), -4.0)


def test_the_state_of_the_optimizer_is_written_as_it_was_at_the_commit(tmp_path):
    bench = Bench(tmp_path, options={"lr": 1.0, "momentum": 0.9})
    bench.full = "no space is left"
    for number in range(2):
        bench.open(number)
        bench.fold(model.update(1.0), number=number)
        bench.aggregator.commit_round(CommitRound("t", number, 1, 0, 64))
        bench.checkpoint = bench.outcome().checkpoint
    bench.open(2)
    bench.fold(model.update(1.0), number=2)
    bench.aggregator.commit_round(CommitRound("t", 2, 1, 0, 64))
    third = bench.outcome().checkpoint
    bench.full = None
    while (written := bench.written_outcome().checkpoint).round < 3:
        pass
    assert (written.weights, written.optimizer) == (third.weights, third.optimizer)
    bench.aggregator.close()


def test_what_is_made_is_written_before_the_end(bench):
    bench.open()
    bench.fold(model.update(1.0))
    bench.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    assert isinstance(bench.outcome(), RoundAggregated)
    bench.aggregator.close()
    assert bench.durables.get_nowait().checkpoint.round == 1


def test_a_task_that_was_released_has_no_version_written_that_waits(bench):
    bench.full = "no space is left"
    bench.open()
    bench.fold(model.update(1.0))
    bench.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    bench.outcome()
    eventually(lambda: bench.aggregator.stalled)
    bench.aggregator.release_task(ReleaseTask("t"))
    eventually(lambda: not bench.aggregator.stalled)
    bench.full = None
    bench.open(attempt=2)
    bench.fold(model.update(3.0), attempt=2)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    (written,) = bench.written
    np.testing.assert_allclose(model.values(bench.blobs.read(written.weights.digest)), -3.0)


def test_whatever_keeps_a_version_from_being_written_loses_nothing(bench, monkeypatch):
    write, errors = bench.checkpoints.write, iter([MemoryError(), ValueError("what")])

    def fails_twice(new: object) -> WrittenCheckpoint:
        if (error := next(errors, None)) is not None:
            raise error
        return write(new)

    monkeypatch.setattr(bench.checkpoints, "write", fails_twice)
    bench.round(0, (1.0, 1))
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


def test_a_disk_that_refuses_the_checkpoint_makes_the_round_wait_and_then_it_goes_on(large):
    large.open()
    large.fold(model.update(1.0))
    large.full = "no space is left"
    large.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    eventually(lambda: large.aggregator.stalled == "no space is left")
    assert large.outcomes.empty()
    large.full = None
    assert isinstance(large.outcome(), RoundAggregated)
    assert large.aggregator.stalled is None
    np.testing.assert_allclose(model.values(large.weights[-1]), -1.0)


class Disk:
    """Lets files be synced when the test says so; it may refuse some before."""

    def __init__(self, patch: pytest.MonkeyPatch, refusals: int = 0) -> None:
        self.go = threading.Event()
        self._refusals = refusals
        self._sync = blob_batch._sync
        patch.setattr(blob_batch, "_sync", self.sync)

    def sync(self, file: io.FileIO) -> None:
        assert self.go.wait(30)
        if self._refusals:
            self._refusals -= 1
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        self._sync(file)


def test_a_large_version_is_read_before_it_is_durable_and_the_one_after_it_waits(large, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        large.open()
        large.fold(model.update(1.0))
        large.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
        first = large.outcome()
        assert isinstance(first, RoundAggregated)
        digest = first.checkpoint.weights.digest
        early = large.blobs.path(digest)
        assert not large.blobs.has(digest), "after a crash it would not be there"
        np.testing.assert_allclose(model.values(early.read_bytes()), -1.0)
        large.checkpoint = first.checkpoint
        large.open(1)
        large.fold(model.update(1.0), number=1)
        large.aggregator.commit_round(CommitRound("t", 1, 1, 0, 64))
        with pytest.raises(queue.Empty):
            large.outcomes.get(timeout=0.1)
        assert large.durables.empty()
        disk.go.set()
        assert large.written_outcome().checkpoint == first.checkpoint
        assert isinstance(large.outcome(), RoundAggregated)
        large.written_outcome()
    assert large.blobs.has(digest)
    assert early.exists(), "who found it a moment ago may open it yet"
    np.testing.assert_allclose(model.values(large.weights[-1]), -2.0)


def test_a_large_version_that_the_disk_loses_is_written_again_from_memory(large, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch, refusals=2)
        disk.go.set()
        event = large.round(0, (1.0, 1))
    assert large.written[-1].weights == event.checkpoint.weights
    np.testing.assert_allclose(model.values(large.weights[-1]), -1.0)


def test_a_round_that_waits_for_the_version_before_it_can_be_given_up(large, monkeypatch):
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        large.open()
        large.fold(model.update(1.0))
        large.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
        large.checkpoint = large.outcome().checkpoint
        large.open(1, attempt=2)
        large.fold(model.update(1.0), number=1, attempt=2)
        large.aggregator.commit_round(CommitRound("t", 1, 2, 0, 64))
        large.aggregator.drop_round(DropRound("t", 1, 2))
        assert isinstance(large.outcome(), AggregationFailed)
        disk.go.set()
        assert large.written_outcome().checkpoint.round == 1, "what was made before it is durable all the same"


@pytest.mark.parametrize("end", [DropRound("t", 0, 1), ReleaseTask("t")])
def test_a_round_that_waits_for_the_disk_can_be_given_up(large, end):
    large.open()
    large.fold(model.update(1.0))
    large.full = "no space is left"
    large.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    eventually(lambda: large.aggregator.stalled)
    give_up = large.aggregator.drop_round if isinstance(end, DropRound) else large.aggregator.release_task
    give_up(end)
    assert large.outcome() == AggregationFailed("t", 0, 1, "no space is left", servers_fault=True)
    large.full = None
    large.open(attempt=2)
    large.fold(model.update(3.0), attempt=2)
    assert isinstance(large.commit(attempt=2), RoundAggregated)
    np.testing.assert_allclose(model.values(large.weights[-1]), -3.0)


def test_a_worker_without_memory_fails_the_attempt_and_says_so(bench, monkeypatch):
    def exhausted(*_: object) -> WrittenCheckpoint:
        raise MemoryError

    bench.open()
    bench.fold(model.update(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(bench.writer, "prepare", exhausted)
        event = bench.commit()
    assert isinstance(event, AggregationFailed)
    assert "out of memory" in event.message
    bench.open(attempt=2)
    bench.fold(model.update(1.0), attempt=2)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    np.testing.assert_allclose(model.values(bench.weights[-1]), -1.0)


@pytest.mark.parametrize(
    ("error", "is_servers"),
    [
        (OSError(errno.EMFILE, "Too many open files"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("what"), False),
    ],
)
def test_whose_fault_a_failed_round_is(bench, monkeypatch, error, is_servers):
    def fails(*_: object) -> WrittenCheckpoint:
        raise error

    bench.open()
    bench.fold(model.update(1.0))
    with monkeypatch.context() as patch:
        patch.setattr(bench.writer, "prepare", fails)
        event = bench.commit()
    assert isinstance(event, AggregationFailed)
    assert event.servers_fault is is_servers
    assert (bench.aggregator.fault is not None) is is_servers
    bench.open(attempt=2)
    bench.fold(model.update(1.0), attempt=2)
    assert isinstance(bench.commit(attempt=2), RoundAggregated)
    assert bench.aggregator.fault is None


def test_a_stop_while_the_disk_is_full_fails_no_round(large):
    large.open()
    large.fold(model.update(1.0))
    large.full = "no space is left"
    large.aggregator.commit_round(CommitRound("t", 0, 1, 0, 64))
    eventually(lambda: large.aggregator.stalled)
    large.aggregator.close()
    large.aggregator.drop_round(DropRound("t", 0, 1))  # what is told it afterwards is nothing to complain of
    large.aggregator.release_task(ReleaseTask("t"))
    assert large.outcomes.empty()


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
