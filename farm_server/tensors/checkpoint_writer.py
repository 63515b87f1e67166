"""Makes new versions durable beside the rounds that follow them, and waits for the disk where it must."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import structlog

from coordinator.commands import CommitRound
from coordinator.records import CheckpointRecord
from farm_server.environment.clock import Clock
from farm_server.environment.disk_space import Claim
from farm_server.tensors.disk_retry import insist
from protocol.errors import Unavailable
from protocol.retry import RetryPolicy
from storage.blobs import ref_of
from storage.checkpoints import BegunCheckpoint, CheckpointStore, NewCheckpoint, WrittenCheckpoint
from storage.errors import DISK_RETRY

if TYPE_CHECKING:
    from farm_server.tensors.task_tensors import NewVersion

_WRITES_AT_ONCE: Final = 4
"""So many tasks' checkpoints are written beside their rounds at a time: all wait for the same disk."""
REST_SECONDS: Final = 0.1
"""From the beginning of one write of a small task to that of the next. Rounds of milliseconds would else be written one
and all, which is a third of their work; a crash trains so much more again."""
_log = structlog.get_logger(__name__)
T = TypeVar("T")

Done = Callable[[WrittenCheckpoint], None]
"""Called on the writer's thread once a version is durable."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    new: NewCheckpoint
    done: Done


@dataclass(slots=True, eq=False)
class _Lane:
    """One task's way to the disk: ``writing`` is what a thread is about, ``waiting`` the newest version after that.

    ``resting`` runs while neither a thread nor the pool's queue has the lane.
    """

    waiting: _Job | None = None
    writing: _Job | None = None
    resting: threading.Timer | None = None
    is_urgent: bool = False
    """Somebody waits for what waits here."""


class CheckpointWriter:
    """Safe on any thread. ``begin`` blocks; ``write_behind``, ``flush`` and ``finish_behind`` return at once.

    Of one task one version is written at a time, and then the newest one that waits, ``rest_seconds`` after the write
    before it began: nothing queues up. Memory: two versions of each task.
    """

    def __init__(
        self,
        store: CheckpointStore,
        clock: Clock,
        claim: Claim,
        retry: RetryPolicy = DISK_RETRY,
        rest_seconds: float = REST_SECONDS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._claim = claim
        self._retry = retry
        self._rest_seconds = rest_seconds
        self._pool = ThreadPoolExecutor(_WRITES_AT_ONCE, thread_name_prefix="checkpoint-writer")
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        """Of the tasks of which something is written, waits, or was written a moment ago."""
        self._refused: dict[str, str] = {}
        self._closing = False

    @property
    def stalled(self) -> str | None:
        """Why a checkpoint can't be written now, if one waits for that."""
        return next(iter(list(self._refused.values())), None)

    def close(self) -> None:
        """Write what waits, as far as the disk takes it at once."""
        with self._lock:
            self._closing = True
            for task_id, lane in list(self._lanes.items()):
                self._wake(task_id, lane)
        self._pool.shutdown(wait=True)

    def prepare(self, command: CommitRound, version: NewVersion) -> NewCheckpoint:
        """Return what is to be written of the version that the command asks for."""
        return NewCheckpoint(
            task_id=command.task_id,
            round=command.round + 1,
            epoch=command.epoch,
            cursor=command.cursor,
            created_at=self._clock.now(),
            weights=version.weights,
            optimizer=version.optimizer,
            delta=version.delta,
            inner_state=version.inner_state,
        )

    def begin(self, new: NewCheckpoint, given_up: Callable[[], bool]) -> BegunCheckpoint:
        """Write a version now so that it can be read; it is not durable yet. While the disk refuses, try again.

        Raises: Unavailable if it is given up meanwhile.
        """
        return self._insist(new, given_up, lambda: self._attempt(new, self._store.begin))

    def finish_behind(
        self, new: NewCheckpoint, begun: BegunCheckpoint, done: Done, given_up: Callable[[], bool]
    ) -> threading.Event:
        """Make what ``begin`` wrote durable; the event says when that is over. Until then the chunks must not change.

        They are written again where the disk loses them: only a delta is not, and is then not stored.
        """
        finished = threading.Event()
        self._pool.submit(self._finish, new, begun, done, given_up, finished)
        return finished

    def write_behind(self, new: NewCheckpoint, done: Done) -> None:
        """Write a version, whose chunks stay as they are, unless a newer one of its task comes before its turn."""
        with self._lock:
            lane = self._lanes.get(new.task_id)
            if lane is not None:
                lane.waiting = _Job(new, done)
                return
            self._lanes[new.task_id] = _Lane(_Job(new, done))
        self._pool.submit(self._write_next, new.task_id)

    def flush(self, task_id: str) -> None:
        """Write the version of a task that waits as soon as a thread is free."""
        with self._lock:
            lane = self._lanes.get(task_id)
            if lane is not None and lane.waiting is not None:
                lane.is_urgent = True
                self._wake(task_id, lane)

    def drop(self, task_id: str) -> None:
        """Nobody needs the versions of a task any more that are not durable."""
        with self._lock:
            lane = self._lanes.get(task_id)
            if lane is not None:
                lane.waiting = lane.writing = None

    def _write_next(self, task_id: str) -> None:
        is_next = True
        while is_next:
            began = time.monotonic()
            job = self._take(task_id)
            if job is not None:
                self._write(job)
            is_next = self._rest(task_id, began + self._rest_seconds)

    def _write(self, job: _Job) -> None:
        new = job.new
        try:
            written = self._insist(new, partial(self._is_given_up, job), partial(self._attempt_whatever_comes, new))
        except Unavailable as error:
            _log.warning("a checkpoint is not written", task=new.task_id, version=new.round, error=error.message)
        else:
            job.done(written)

    def _take(self, task_id: str) -> _Job | None:
        """Begin with what waits of a task; what is urgent is dealt with by that."""
        with self._lock:
            lane = self._lanes[task_id]
            job = lane.writing = lane.waiting
            lane.waiting, lane.is_urgent = None, False
            return job

    def _rest(self, task_id: str, until: float) -> bool:
        """Come back to a task later: to the end of the queue if somebody waits, and else after a rest.

        At the end of all, when the queue takes nothing any more, say whether this thread has to go on with it.
        """
        with self._lock:
            lane = self._lanes[task_id]
            lane.writing = None
            if self._closing:
                return lane.waiting is not None
            rest_seconds = 0.0 if lane.is_urgent else until - time.monotonic()
            if rest_seconds > 0:
                lane.resting = threading.Timer(rest_seconds, self._rested, (task_id, lane))
                lane.resting.daemon = True
                lane.resting.start()
            else:
                self._go_on(task_id, lane)
            return False

    def _rested(self, task_id: str, lane: _Lane) -> None:
        with self._lock:
            self._wake(task_id, lane)

    def _wake(self, task_id: str, lane: _Lane) -> None:
        """End a lane's rest, if it rests. Needs the lock."""
        if lane.resting is None:
            return
        lane.resting.cancel()
        lane.resting = None
        self._go_on(task_id, lane)

    def _go_on(self, task_id: str, lane: _Lane) -> None:
        """Queue a lane for what waits in it. Needs the lock."""
        if lane.waiting is not None:
            self._pool.submit(self._write_next, task_id)
        else:
            del self._lanes[task_id]

    def _finish(
        self,
        new: NewCheckpoint,
        begun: BegunCheckpoint,
        done: Done,
        given_up: Callable[[], bool],
        finished: threading.Event,
    ) -> None:
        try:
            done(self._finished(new, begun, lambda: self._closing or given_up()))
        except Unavailable as error:
            _log.warning("a checkpoint is not written", task=new.task_id, version=new.round, error=error.message)
        finally:
            finished.set()

    def _finished(self, new: NewCheckpoint, begun: BegunCheckpoint, given_up: Callable[[], bool]) -> WrittenCheckpoint:
        try:
            begun.finish()
        except Exception as error:
            _log.warning("a checkpoint is written again", task=new.task_id, version=new.round, error=str(error))
            again = replace(new, delta=None)
            return self._insist(again, given_up, partial(self._attempt_whatever_comes, again))
        return begun.written

    def _attempt(self, new: NewCheckpoint, write: Callable[[NewCheckpoint], T]) -> T:
        self._claim(new.size_bytes)
        return write(new)

    def _attempt_whatever_comes(self, new: NewCheckpoint) -> WrittenCheckpoint:
        """Nobody waits for it in a round that could fail: too little memory, say, is waited out as a full disk is."""
        try:
            return self._attempt(new, self._store.write)
        except Unavailable:
            raise
        except Exception as error:
            _log.exception("a checkpoint can't be written", task=new.task_id, version=new.round)
            raise Unavailable(f"{type(error).__name__}: {error}") from error

    def _insist(self, new: NewCheckpoint, given_up: Callable[[], bool], attempt: Callable[[], T]) -> T:
        def waits_for(reason: str) -> None:
            if new.task_id not in self._refused:
                _log.error("a checkpoint waits for the disk", task=new.task_id, version=new.round, error=reason)
            self._refused[new.task_id] = reason

        try:
            return insist(attempt, waits_for, given_up, self._retry)
        finally:
            self._refused.pop(new.task_id, None)

    def _is_given_up(self, job: _Job) -> bool:
        lane = self._lanes[job.new.task_id]
        return self._closing or lane.waiting is not None or lane.writing is not job


def named(new: NewCheckpoint) -> CheckpointRecord:
    """Return the record of a version that is in memory: it has no manifest yet."""
    return CheckpointRecord(
        task_id=new.task_id,
        round=new.round,
        epoch=new.epoch,
        cursor=new.cursor,
        weights=ref_of(b"".join(new.weights)),
        optimizer=None if new.optimizer is None else ref_of(b"".join(new.optimizer)),
        inner_state=None if new.inner_state is None else ref_of(b"".join(new.inner_state)),
        manifest=None,
        created_at=new.created_at,
    )
