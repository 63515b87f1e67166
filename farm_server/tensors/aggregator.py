"""Carries out the tensor part of rounds: one serial worker for each task, on a pool of threads.

The event loop never waits for tensors: a command is queued here and its outcome comes back as an event.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from coordinator.commands import CommitRound, DropRound, FlushCheckpoint, Fold, OpenRound, ReleaseTask
from coordinator.events import AggregationFailed, CheckpointDurable, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from farm_server.tensors.checkpoint_writer import CheckpointWriter, named
from farm_server.tensors.serial_worker import SerialWorker
from farm_server.tensors.spooled_updates import SpooledUpdates
from farm_server.tensors.torch_side import TorchSide
from protocol.compression import CodecSpec
from protocol.errors import DigestMismatch, FarmError, NotFound, Unavailable
from protocol.limits import INLINE_BYTES
from protocol.tasks import BlobRef, TaskSpec, WeightsDelta
from storage.blob_batch import Chunk, size_of
from storage.checkpoints import CheckpointStore, WrittenCheckpoint

if TYPE_CHECKING:
    from farm_server.tensors.task_tensors import NewVersion, TaskTensors

_DAMAGE = (NotFound, DigestMismatch)
"""What an unreadable checkpoint raises: a file that is gone, truncated or changed."""
_FAULT_SECONDS = 60.0
_LOOK_SECONDS = 0.1
"""So often a round that waits for the disk looks whether anybody still wants it."""
SMALL_STATE_BYTES = 3 * INLINE_BYTES
"""Up to here an optimizer's state is copied, to be written while it changes: two moments of small weights."""
COMMIT_STAGES = ("wait", "step", "save")
"""For the version before to be durable, for the optimizer, and to have the new version readable."""
_log = structlog.get_logger(__name__)


class Outcomes(Protocol):
    """Where outcomes go. Called on worker threads."""

    def event(self, event: Event) -> None:
        """Hand the coordinator an event."""

    def damaged(self, command: OpenRound, message: str) -> None:
        """Note that the checkpoint a round should start from can't be read."""

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: Mapping[str, float]
    ) -> None:
        """Take note of a new version before the coordinator does. ``small``: its blobs that can ride inline.

        ``seconds``: those of its round here, by stage, ``fold`` and then ``COMMIT_STAGES``.

        A checkpoint without a manifest is in memory only, until it is ``durable``.
        """

    def durable(self, spec: TaskSpec, checkpoint: CheckpointRecord) -> None:
        """Take a version that is on the disk, before the coordinator does."""


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
    fold_seconds: float = 0.0
    given_up: float = 0
    """Set from outside: up to this attempt, a round that waits for the disk need wait no longer."""

    unfinished: threading.Event | None = None
    """Set when the version that ``tensors`` have is durable: until then it may be written from them once more."""

    def wait_until_durable(self, attempt: int) -> None:
        """Return when the tensors may change. Raises: Unavailable if the attempt is given up meanwhile."""
        while self.unfinished is not None and not self.unfinished.wait(_LOOK_SECONDS):
            if self.given_up >= attempt:
                raise Unavailable("the version before it is not on the disk yet")
        self.unfinished = None

    def forget(self) -> None:
        """Free the memory; the next round loads from its checkpoint."""
        self.unfinished = None
        self.tensors = None
        self.holds = None
        self.attempt = None

    def opened(self, attempt: int) -> TaskTensors | None:
        """Return the tensors, if that attempt is the one that is open."""
        return self.tensors if self.attempt == attempt else None


_C = TypeVar("_C", Fold, CommitRound)


class Aggregator:
    """Does OpenRound, Fold, CommitRound, FlushCheckpoint, DropRound and ReleaseTask. Call it on the event loop."""

    def __init__(
        self,
        *,
        checkpoints: CheckpointStore,
        writer: CheckpointWriter,
        spooled: SpooledUpdates,
        torch_side: TorchSide,
        outcomes: Outcomes,
        threads: int,
    ) -> None:
        self._checkpoints = checkpoints
        self._writer = writer
        self._spooled = spooled
        self._torch_side = torch_side
        self._outcomes = outcomes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="aggregator")
        self._tasks: dict[str, _Task] = {}
        self._closing = False
        self._fault: tuple[float, str] | None = None

    def close(self) -> None:
        """Finish the jobs that run, drop those that wait, and write what is made; that it ends fails no round."""
        self._closing = True
        for task in list(self._tasks.values()):
            task.given_up = math.inf
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._writer.close()

    @property
    def stalled(self) -> str | None:
        """Why a checkpoint can't be written now, if one waits for that."""
        return self._writer.stalled

    @property
    def fault(self) -> str | None:
        """What the server lacked when it last failed a round, for a while after that or until a round is committed."""
        fault = self._fault
        return fault[1] if fault is not None and time.monotonic() - fault[0] < _FAULT_SECONDS else None

    def open_round(self, command: OpenRound) -> None:
        """Load what the round starts from, unless it is in memory, and zero the accumulator.

        Unreadable bytes are told to ``damaged``; anything else that goes wrong is AggregationFailed, as always.
        """
        if self._closing:
            return
        task = self._tasks.get(command.task_id)
        if task is None:
            task = self._tasks[command.task_id] = _Task(SerialWorker(self._pool), command.spec)
        opening = task
        task.worker.submit(lambda: self._guarded(opening, command, lambda: self._open(opening, command)))

    def fold(self, command: Fold) -> None:
        """Add an update to the round's accumulator."""
        self._submit(command, self._fold)

    def commit_round(self, command: CommitRound) -> None:
        """Step the outer optimizer and answer ``RoundAggregated``; the checkpoint is written beside what follows."""
        self._submit(command, self._commit)

    def flush_checkpoint(self, command: FlushCheckpoint) -> None:
        """Have the newest version written without a rest; after the job that makes it, if that still runs."""
        task = self._tasks.get(command.task_id)
        if task is not None and not self._closing:
            task.worker.submit(lambda: self._writer.flush(command.task_id))

    def drop_round(self, command: DropRound) -> None:
        """Drop the accumulator and delete the spooled updates that are in it."""
        task = self._tasks.get(command.task_id)
        if task is not None and not self._closing:
            task.given_up = command.attempt
            task.worker.submit(lambda: self._end_round(task))

    def release_task(self, command: ReleaseTask) -> None:
        """Free the task's tensors, and write no version of it any more."""
        self._writer.drop(command.task_id)
        task = self._tasks.pop(command.task_id, None)
        if task is not None and not self._closing:
            task.given_up = math.inf
            task.worker.submit(lambda: self._release(task))

    def _submit(self, command: _C, work: Callable[[_Task, TaskTensors, _C], None]) -> None:
        task = self._tasks.get(command.task_id)
        if task is None or self._closing:  # released meanwhile
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
            if not self._closing:  # else the round stays open, and the next start goes on with it
                opening = (command.task_id, command.round, command.attempt)
                self._outcomes.event(AggregationFailed(*opening, message, self._note_fault(error, message)))

    def _note_fault(self, error: Exception, message: str) -> bool:
        """Whether the server itself is at fault; then ``fault`` shows it for a while."""
        is_own = is_servers_fault(error)
        if is_own:
            self._fault = (time.monotonic(), message)
        return is_own

    def _open(self, task: _Task, command: OpenRound) -> None:
        wanted = _digests(command.checkpoint)
        if task.tensors is None or task.holds != wanted:
            task.forget()
            try:
                files = self._checkpoints.open(command.checkpoint)
            except _DAMAGE as error:
                self._outcomes.damaged(command, str(error))
                return
            task.tensors = self._torch_side.open_task(command.spec.recipe, files)
            task.holds = wanted
        task.tensors.begin()
        task.attempt = command.attempt

    def _fold(self, task: _Task, tensors: TaskTensors, command: Fold) -> None:
        update, started = command.update, time.perf_counter()
        tensors.fold(self._spooled.source(update), command.samples, command.scale, client=command.client_id)
        task.folded.append(update)
        task.fold_seconds += time.perf_counter() - started

    def _commit(self, task: _Task, tensors: TaskTensors, command: CommitRound) -> None:
        times = [time.perf_counter()]
        task.wait_until_durable(command.attempt)
        times.append(time.perf_counter())
        if command.unmasking is not None:
            tensors.unmask(self._torch_side.masks_left(command.task_id, command.round, command.unmasking))
        before, task.holds = task.holds, None
        version = _with_small_parts_joined(tensors.step(command.round))
        times.append(time.perf_counter())
        new = self._writer.prepare(command, version)
        begun = None if _is_small(version) else self._writer.begin(new, lambda: task.given_up >= command.attempt)
        written = begun.written if begun is not None else WrittenCheckpoint(named(new), delta=None)
        task.holds = _digests(written.record)
        times.append(time.perf_counter())
        stages = (end - start for start, end in pairwise(times))
        seconds = {"fold": task.fold_seconds, **dict(zip(COMMIT_STAGES, stages, strict=True))}
        self._end_round(task)
        self._fault = None
        small = _small_blobs(version, written)
        self._outcomes.committed(task.spec, written.record, small, seconds)
        delta = _delta(task.spec.recipe.weights_codec, before, written)
        if delta is not None:  # a client that names it as its own update must not have it deleted
            self._spooled.hold(delta.blob)
        opening = (command.task_id, command.round, command.attempt)
        self._outcomes.event(RoundAggregated(*opening, written.record, delta))
        durable = partial(self._durable, task.spec, command.attempt)
        if begun is None:
            self._writer.write_behind(new, durable)
        else:
            task.unfinished = self._writer.finish_behind(new, begun, durable, lambda: task.given_up == math.inf)

    def _durable(self, spec: TaskSpec, attempt: int, written: WrittenCheckpoint) -> None:
        self._outcomes.durable(spec, written.record)
        self._outcomes.event(CheckpointDurable(written.record.task_id, attempt, written.record))

    def _release(self, task: _Task) -> None:
        self._end_round(task)
        task.forget()

    def _end_round(self, task: _Task) -> None:
        task.attempt, task.fold_seconds = None, 0.0
        folded, task.folded = task.folded, []
        for update in folded:
            self._spooled.release(update)

    def _discard(self, command: OpenRound | Fold | CommitRound) -> None:
        if isinstance(command, Fold):
            self._spooled.release(command.update)


def is_servers_fault(error: Exception) -> bool:
    """Whether the server lacked something (room, memory, descriptors, torch), as it would have for any task."""
    if isinstance(error, (Unavailable, OSError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's allocator


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


def _with_small_parts_joined(version: NewVersion) -> NewVersion:
    """Make one piece of what can ride inline: it is written, and kept in memory, as that piece."""
    return replace(
        version,
        weights=_joined(version.weights, INLINE_BYTES),
        optimizer=version.optimizer and _joined(version.optimizer, SMALL_STATE_BYTES),
        delta=version.delta and _joined(version.delta, INLINE_BYTES),
        inner_state=version.inner_state and _joined(version.inner_state, INLINE_BYTES),
    )


def _joined(chunks: list[Chunk], most_bytes: int) -> list[Chunk]:
    return [b"".join(chunks)] if size_of(chunks) <= most_bytes else chunks


def _is_small(version: NewVersion) -> bool:
    """Whether a version can be kept in memory and sent from there, while the task's tensors change."""
    parts = (version.weights, version.optimizer or [], version.inner_state or [])
    return version.delta is None and all(isinstance(chunk, bytes) for chunks in parts for chunk in chunks)


def _small_blobs(version: NewVersion, written: WrittenCheckpoint) -> dict[str, bytes]:
    stored = [
        (written.record.weights, version.weights),
        (written.record.inner_state, version.inner_state),
        (written.delta, version.delta),
    ]
    return {
        ref.digest: chunks[0]
        for ref, chunks in stored
        if ref is not None and chunks is not None and len(chunks) == 1 and isinstance(chunks[0], bytes)
    }


def _delta(codec: CodecSpec, before: tuple[str, str | None] | None, written: WrittenCheckpoint) -> WeightsDelta | None:
    digest = written.record.weights.digest
    if written.delta is None or before is None or before[0] == digest:
        return None
    return WeightsDelta(base=before[0], digest=digest, codec=codec, blob=written.delta)
