"""Carries out the tensor part of rounds: one serial worker for each task, on a pool of threads.

The event loop never waits for tensors: a command is queued here and its outcome comes back as an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from coordinator.commands import CommitRound, DropRound, Fold, OpenRound, ReleaseTask
from coordinator.events import AggregationFailed, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from farm_server.clock import Clock
from farm_server.serial_worker import SerialWorker
from farm_server.spooled_updates import SpooledUpdates
from farm_server.torch_side import TorchSide
from protocol.errors import FarmError
from protocol.tasks import BlobRef, TaskSpec
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore

if TYPE_CHECKING:
    from farm_server.task_tensors import TaskTensors

_log = structlog.get_logger(__name__)


class Outcomes(Protocol):
    """Where outcomes go. Called on worker threads."""

    def event(self, event: Event) -> None:
        """Tell the coordinator."""

    def committed(self, spec: TaskSpec, checkpoint: CheckpointRecord, weights: bytes, seconds: float) -> None:
        """Hear of a durable checkpoint before the coordinator does."""


@dataclass(slots=True)
class _Task:
    """One task's worker and what its jobs share. Only jobs touch anything but ``worker``."""

    worker: SerialWorker
    spec: TaskSpec
    tensors: TaskTensors | None = None
    holds: tuple[str, str | None] | None = None
    """Digests of the weights and the optimizer state that ``tensors`` have; None while they are of no version."""
    attempt: int | None = None
    """The attempt that is open, if one is and has not failed."""
    folded: list[BlobRef] = field(default_factory=list)

    def forget(self) -> None:
        """Free the memory; the next round loads from its checkpoint."""
        self.tensors = None
        self.holds = None
        self.attempt = None

    def opened(self, attempt: int) -> TaskTensors | None:
        """Return the tensors, if that attempt is the one that is open."""
        return self.tensors if self.attempt == attempt else None


_C = TypeVar("_C", Fold, CommitRound)


class Aggregator:
    """Does OpenRound, Fold, CommitRound, DropRound and ReleaseTask. Call it on the event loop."""

    def __init__(
        self,
        *,
        blobs: FolderBlobStore,
        checkpoints: CheckpointStore,
        spooled: SpooledUpdates,
        torch_side: TorchSide,
        outcomes: Outcomes,
        clock: Clock,
        threads: int,
    ) -> None:
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._spooled = spooled
        self._torch_side = torch_side
        self._outcomes = outcomes
        self._clock = clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aggregator")
        self._tasks: dict[str, _Task] = {}

    def close(self) -> None:
        """Finish the jobs that run and drop those that wait."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def open_round(self, command: OpenRound) -> None:
        """Load what the round starts from, unless it is in memory, and zero the accumulator."""
        task = self._tasks.get(command.task_id)
        if task is None:
            task = self._tasks[command.task_id] = _Task(SerialWorker(self._pool), command.spec)
        opening = task
        task.worker.submit(lambda: self._guarded(opening, command, lambda: self._open(opening, command)))

    def fold(self, command: Fold) -> None:
        """Add an update to the round's accumulator."""
        self._submit(command, self._fold)

    def commit_round(self, command: CommitRound) -> None:
        """Step the outer optimizer, write the checkpoint and answer ``RoundAggregated``."""
        self._submit(command, self._commit)

    def drop_round(self, command: DropRound) -> None:
        """Forget the accumulator and delete the spooled updates that are in it."""
        task = self._tasks.get(command.task_id)
        if task is not None:
            task.worker.submit(lambda: self._end_round(task))

    def release_task(self, command: ReleaseTask) -> None:
        """Free the task's tensors."""
        task = self._tasks.pop(command.task_id, None)
        if task is not None:
            task.worker.submit(lambda: self._release(task))

    def _submit(self, command: _C, work: Callable[[_Task, TaskTensors, _C], None]) -> None:
        task = self._tasks.get(command.task_id)
        if task is None:  # released meanwhile
            self._discard(command)
            return

        def job() -> None:
            tensors = task.opened(command.attempt)
            if tensors is None:  # that attempt failed or was dropped, and the coordinator knows
                self._discard(command)
            else:
                self._guarded(task, command, lambda: work(task, tensors, command))

        task.worker.submit(job)

    def _guarded(self, task: _Task, command: OpenRound | Fold | CommitRound, work: Callable[[], None]) -> None:
        """Run one job; whatever goes wrong in it ends the round's attempt and nothing else."""
        try:
            work()
        except Exception as error:
            expected = isinstance(error, FarmError)
            message = str(error) if expected else f"{type(error).__name__}: {error}"
            _log.error(
                "aggregation failed",
                task=command.task_id,
                round=command.round,
                error=message,
                exc_info=None if expected else error,
            )
            self._discard(command)
            self._end_round(task)
            task.forget()
            self._outcomes.event(AggregationFailed(command.task_id, command.round, command.attempt, message))

    def _open(self, task: _Task, command: OpenRound) -> None:
        wanted = _digests(command.checkpoint)
        if task.tensors is None or task.holds != wanted:
            task.forget()
            weights, optimizer = self._checkpoints.load(command.checkpoint)
            outer = command.spec.recipe.outer
            task.tensors = self._torch_side.open_task(
                outer, bytes(weights), None if optimizer is None else bytes(optimizer)
            )
            task.holds = wanted
        task.tensors.begin()
        task.attempt = command.attempt

    def _fold(self, task: _Task, tensors: TaskTensors, command: Fold) -> None:
        update = command.update
        tensors.fold(self._blobs.path(update.digest) if update.inline is None else update.inline, command.samples)
        task.folded.append(update)

    def _commit(self, task: _Task, tensors: TaskTensors, command: CommitRound) -> None:
        started = time.perf_counter()
        task.holds = None
        weights, optimizer = tensors.step()
        checkpoint = self._checkpoints.write(
            command.task_id,
            command.round + 1,
            command.epoch,
            command.cursor,
            weights,
            optimizer,
            self._clock.now(),
            {},
        )
        task.holds = _digests(checkpoint)
        self._end_round(task)
        self._outcomes.committed(task.spec, checkpoint, weights, time.perf_counter() - started)
        self._outcomes.event(RoundAggregated(command.task_id, command.round, command.attempt, checkpoint))

    def _release(self, task: _Task) -> None:
        self._end_round(task)
        task.forget()

    def _end_round(self, task: _Task) -> None:
        task.attempt = None
        folded, task.folded = task.folded, []
        for update in folded:
            self._spooled.release(update)

    def _discard(self, command: OpenRound | Fold | CommitRound) -> None:
        if isinstance(command, Fold):
            self._spooled.release(command.update)


def _digests(checkpoint: CheckpointRecord) -> tuple[str, str | None]:
    return checkpoint.weights.digest, checkpoint.optimizer.digest if checkpoint.optimizer else None
