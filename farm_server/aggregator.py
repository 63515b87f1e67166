"""Carries out the tensor part of rounds: one serial worker for each task, on a pool of threads.

The event loop never waits for tensors: a command is queued here and its outcome comes back as an event.
"""

from __future__ import annotations

import math
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
from farm_server.faults import armed, reach
from farm_server.room import Claim
from farm_server.serial_worker import SerialWorker
from farm_server.spooled_updates import SpooledUpdates
from farm_server.torch_side import TorchSide
from protocol.errors import DigestMismatch, FarmError, NotFound, Unavailable
from protocol.faults import Fault
from protocol.tasks import BlobRef, TaskSpec
from storage.blobs import FolderBlobStore
from storage.checkpoints import CheckpointStore

if TYPE_CHECKING:
    from farm_server.task_tensors import TaskTensors

_RETRY_SECONDS = 1.0
_DAMAGE = (NotFound, DigestMismatch)
"""What an unreadable checkpoint raises: a file that is gone, truncated or changed."""
_log = structlog.get_logger(__name__)


class Outcomes(Protocol):
    """Where outcomes go. Called on worker threads."""

    def event(self, event: Event) -> None:
        """Tell the coordinator."""

    def damaged(self, command: OpenRound, message: str) -> None:
        """Hear that the checkpoint a round should start from can't be read."""

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
    given_up: float = 0
    """Set from outside: up to this attempt, a round that waits for the disk need wait no longer."""
    waits_for: str | None = None
    """Why it can't be written now, while it waits for the disk."""

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
        claim: Claim,
        threads: int,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._blobs = blobs
        self._checkpoints = checkpoints
        self._spooled = spooled
        self._torch_side = torch_side
        self._outcomes = outcomes
        self._clock = clock
        self._claim = claim
        self._retry_seconds = retry_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aggregator")
        self._tasks: dict[str, _Task] = {}

    def close(self) -> None:
        """Finish the jobs that run and drop those that wait."""
        for task in list(self._tasks.values()):
            task.given_up = math.inf
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def stalled(self) -> str | None:
        """Why a checkpoint can't be written now, if one waits for that."""
        return next((task.waits_for for task in list(self._tasks.values()) if task.waits_for), None)

    def open_round(self, command: OpenRound) -> None:
        """Load what the round starts from, unless it is in memory, and zero the accumulator.

        Unreadable bytes are told to ``damaged``; anything else that goes wrong is AggregationFailed, as always.
        """
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
            task.given_up = command.attempt
            task.worker.submit(lambda: self._end_round(task))

    def release_task(self, command: ReleaseTask) -> None:
        """Free the task's tensors."""
        task = self._tasks.pop(command.task_id, None)
        if task is not None:
            task.given_up = math.inf
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
            message = _explained(error)
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
            try:
                weights, optimizer = self._checkpoints.load(command.checkpoint)
            except _DAMAGE as error:
                self._outcomes.damaged(command, str(error))
                return
            task.tensors = self._torch_side.open_task(command.spec.recipe.outer, weights, optimizer)
            task.holds = wanted
        task.tensors.begin()
        task.attempt = command.attempt

    def _fold(self, task: _Task, tensors: TaskTensors, command: Fold) -> None:
        update = command.update
        reach(Fault.SERVER_BEFORE_FOLD, command.round)
        midway = (lambda: reach(Fault.SERVER_WHILE_FOLDING, command.round)) if armed() else None
        source = self._blobs.path(update.digest) if update.inline is None else update.inline
        tensors.fold(source, command.samples, command.scale, midway)
        task.folded.append(update)

    def _commit(self, task: _Task, tensors: TaskTensors, command: CommitRound) -> None:
        started = time.perf_counter()
        reach(Fault.SERVER_BEFORE_COMMIT, command.round)
        task.holds = None
        weights, optimizer = tensors.step()
        checkpoint = self._write_patiently(task, command, weights, optimizer)
        reach(Fault.SERVER_WHILE_COMMITTING, command.round)
        task.holds = _digests(checkpoint)
        self._end_round(task)
        self._outcomes.committed(task.spec, checkpoint, weights, time.perf_counter() - started)
        self._outcomes.event(RoundAggregated(command.task_id, command.round, command.attempt, checkpoint))

    def _write_patiently(
        self, task: _Task, command: CommitRound, weights: bytes, optimizer: bytes | None
    ) -> CheckpointRecord:
        """Write the checkpoint; while the disk refuses, wait for it. Raises: Unavailable if the round is given up."""
        needed_bytes = len(weights) + len(optimizer or b"")
        where = (command.task_id, command.round + 1, command.epoch, command.cursor)
        try:
            while True:
                try:
                    self._claim(needed_bytes)
                    return self._checkpoints.write(*where, weights, optimizer, self._clock.now(), {})
                except Unavailable as error:
                    if task.waits_for is None:
                        _log.error("a round waits for the disk", task=command.task_id, error=error.message)
                    task.waits_for = error.message
                    if task.given_up >= command.attempt:
                        raise
                    time.sleep(self._retry_seconds)
        finally:
            task.waits_for = None

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


def _explained(error: Exception) -> str:
    match error:
        case FarmError():
            return error.message
        case MemoryError():
            return "the server ran out of memory; stop other programs or give it more"
        case _:
            return f"{type(error).__name__}: {error}"


def _digests(checkpoint: CheckpointRecord) -> tuple[str, str | None]:
    return checkpoint.weights.digest, checkpoint.optimizer.digest if checkpoint.optimizer else None
