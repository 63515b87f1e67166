"""The tensor side of the server with exact weights: one serial worker a task, in memory that a crash forgets."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.commands import CommitRound, DropRound, DropUpdate, FlushCheckpoint, Fold, OpenRound, ReleaseTask
from coordinator.events import AggregationFailed, CheckpointDamaged, CheckpointDurable, Event, RoundAggregated
from coordinator.records import CheckpointRecord
from protocol.digests import digest_bytes
from protocol.tasks import BlobRef
from tests.simulation.exact_weights import aggregate_of, state_of
from tests.simulation.masked import check_unmasked
from tests.simulation.violation import check

if TYPE_CHECKING:
    from tests.simulation.world import World

Job = OpenRound | Fold | CommitRound | FlushCheckpoint | DropRound | ReleaseTask


@dataclass(slots=True)
class _Task:
    """One task's jobs, the accumulator of the attempt that is open, and what is on its way to the disk."""

    jobs: deque[Job] = field(default_factory=deque)
    attempt: int | None = None
    weights: int = 0
    folded: list[Fold] = field(default_factory=list)
    in_memory: tuple[str, int] | None = None
    """Digest and weights of the version that is loaded."""
    unwritten: tuple[CheckpointDurable, int] | None = None
    """The version, with its weights, that is written next."""
    rests_until: float = 0.0
    is_writing: bool = False


class Aggregator:
    """Does what the real one does, in simulated time. ``post`` takes its outcomes to the coordinator."""

    def __init__(self, world: World, post: Callable[[Event], None]) -> None:
        self._world = world
        self._post = post
        self._tasks: dict[str, _Task] = {}
        self._spooled: Counter[str] = Counter()
        self.crashed = False

    def hold(self, update: BlobRef) -> None:
        """Note that a result brought this update."""
        self._spooled[update.digest] += 1

    def drop(self, command: DropUpdate) -> None:
        """Delete a spooled update, unless another result brought the same one."""
        self._release(command.update)

    def forgotten(self) -> list[str]:
        """Return the digests of spooled updates that no job will fold or delete."""
        known = Counter(
            job.update.digest
            for task in self._tasks.values()
            for job in (*task.jobs, *task.folded)
            if isinstance(job, Fold)
        )
        return [digest for digest, count in (self._spooled - known).items() if count > 0]

    def submit(self, job: Job) -> None:
        """Queue a job behind the others of its task."""
        task = self._tasks.setdefault(job.task_id, _Task())
        task.jobs.append(job)
        if len(task.jobs) == 1:
            self._begin(task)

    def _begin(self, task: _Task) -> None:
        self._world.agenda.after(self._world.weather.job_seconds(task.jobs[0]), lambda: self._end(task))

    def _end(self, task: _Task) -> None:
        if self.crashed:
            return
        self._do(task, task.jobs[0])
        task.jobs.popleft()
        if task.jobs:
            self._begin(task)

    def _do(self, task: _Task, job: Job) -> None:
        match job:
            case DropRound():
                self._forget(task)
            case ReleaseTask():
                self._forget(task)
                task.in_memory = task.unwritten = None
            case FlushCheckpoint():
                task.rests_until = 0.0
                self._write(task)
            case OpenRound() if not self._fails(task, job):
                self._open(task, job)
            case Fold() if task.attempt != job.attempt:
                self._release(job.update)
            case CommitRound() if task.attempt != job.attempt:
                pass  # that attempt failed or was dropped, and the coordinator knows
            case Fold() if not self._fails(task, job):
                self._fold(task, job)
            case CommitRound() if not self._fails(task, job):
                self._commit(task, job)

    def _fails(self, task: _Task, job: OpenRound | Fold | CommitRound) -> bool:
        if not self._world.weather.aggregation_fails():
            return False
        if isinstance(job, Fold):
            self._release(job.update)
        self._forget(task)
        task.in_memory = None
        self._post(AggregationFailed(job.task_id, job.round, job.attempt, "the disk is full"))
        return True

    def _open(self, task: _Task, job: OpenRound) -> None:
        self._forget(task)
        digest = job.checkpoint.weights.digest
        if task.in_memory is not None and task.in_memory[0] == digest:
            task.attempt, task.weights = job.attempt, task.in_memory[1]
            return
        task.in_memory = None
        if self._world.weather.damages_checkpoint(job.round):
            self._world.damaged.add(digest)
        if digest in self._world.damaged:
            self._fall_back(job)
            return
        task.attempt = job.attempt
        check(digest in self._world.blobs, f"version {job.round} of {job.task_id} is read, and was never written")
        task.weights = self._world.blobs[digest]
        task.in_memory = (digest, task.weights)

    def _fall_back(self, job: OpenRound) -> None:
        """Find the newest older checkpoint that can be read, and what was counted since."""
        ledger = self._world.ledger
        older = [c for (task_id, n), c in ledger.checkpoints.items() if task_id == job.task_id and n < job.round]
        readable = [c for c in older if c.weights.digest not in self._world.damaged]
        kept = max(readable, key=lambda c: c.round, default=None)
        undone = () if kept is None else ledger.undo(job.task_id, kept.round)
        self._post(CheckpointDamaged(job.task_id, job.round, job.attempt, "its digest differs", kept, undone))

    def _fold(self, task: _Task, job: Fold) -> None:
        check(self._spooled[job.update.digest] > 0, f"the update of {job.assignment_id} was deleted before its fold")
        update = self._world.updates[job.update.digest]
        check(update.assignment_id == job.assignment_id, f"{job.assignment_id} is folded with another's update")
        check(job.assignment_id not in [f.assignment_id for f in task.folded], f"{job.assignment_id} is folded twice")
        task.folded.append(job)

    def _commit(self, task: _Task, job: CommitRound) -> None:
        recipe = self._world.ledger.tasks[job.task_id].spec.recipe
        updates = [self._world.updates[fold.update.digest] for fold in task.folded]
        check_unmasked(job.task_id, job.round, updates, job.unmasking)
        votes = ((fold.client_id, self._world.updates[fold.update.digest].value) for fold in task.folded)
        weights = task.weights + aggregate_of(recipe, votes)
        name = f"{job.task_id}/{job.round + 1}/{weights}"
        digest = digest_bytes(name.encode())
        checkpoint = CheckpointRecord(
            task_id=job.task_id,
            round=job.round + 1,
            epoch=job.epoch,
            cursor=job.cursor,
            weights=BlobRef.model_construct(digest=digest, size_bytes=8, inline=None),
            optimizer=None,
            manifest=None,
            created_at=self._world.server_now(),
            inner_state=state_of(digest),
        )
        self._forget(task)
        task.in_memory = (digest, weights)
        task.unwritten = (CheckpointDurable(job.task_id, job.attempt, checkpoint), weights)
        self._post(RoundAggregated(job.task_id, job.round, job.attempt, checkpoint))
        self._write(task)

    def _write(self, task: _Task) -> None:
        """Write the newest version that waits, if none is being written, after a rest unless somebody waits for it."""
        if task.is_writing or task.unwritten is None or self.crashed:
            return
        agenda = self._world.agenda
        if (rest_seconds := task.rests_until - agenda.now) > 0:
            agenda.after(rest_seconds, lambda: self._write(task))
            return
        task.rests_until = agenda.now + self._world.weather.rest_seconds()
        (written, weights), task.unwritten, task.is_writing = task.unwritten, None, True
        self._world.agenda.after(self._world.weather.write_seconds(), lambda: self._written(task, written, weights))

    def _written(self, task: _Task, written: CheckpointDurable, weights: int) -> None:
        if self.crashed:
            return
        if self._world.weather.disk_refuses() and task.unwritten is None:
            self._world.agenda.after(1.0, lambda: self._written(task, written, weights))
            return
        task.is_writing = False
        if not self._world.weather.disk_refuses():
            digest = written.checkpoint.weights.digest
            self._world.blobs[digest] = weights
            self._world.damaged.discard(digest)
            self._post(written)
        self._write(task)

    def _forget(self, task: _Task) -> None:
        for job in task.folded:
            self._release(job.update)
        task.attempt, task.folded = None, []

    def _release(self, update: BlobRef) -> None:
        self._spooled[update.digest] -= 1
        check(self._spooled[update.digest] >= 0, "an update is released more often than it was held")
