"""Makes a task's new version durable, and waits for the disk where it must; or names it without writing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from coordinator.commands import CommitRound
from coordinator.records import CheckpointRecord
from farm_server.environment.clock import Clock
from farm_server.environment.disk_space import Claim
from farm_server.tensors.disk_retry import insist
from protocol.retry import RetryPolicy
from storage.blob_batch import size_of
from storage.blobs import ref_of
from storage.checkpoints import CheckpointStore, NewCheckpoint, WrittenCheckpoint
from storage.errors import DISK_RETRY

if TYPE_CHECKING:
    from farm_server.tensors.task_tensors import NewVersion


class _Place(TypedDict):
    task_id: str
    round: int
    epoch: int
    cursor: int
    created_at: float


class CheckpointWriter:
    """``write`` blocks: call it in worker threads."""

    def __init__(self, store: CheckpointStore, clock: Clock, claim: Claim, retry: RetryPolicy = DISK_RETRY) -> None:
        self._store = store
        self._clock = clock
        self._claim = claim
        self._retry = retry

    def write(
        self,
        command: CommitRound,
        version: NewVersion,
        waits_for: Callable[[str], None],
        given_up: Callable[[], bool],
    ) -> WrittenCheckpoint:
        """Write the version that the command asks for; while the disk refuses, tell ``waits_for`` why and try again.

        Raises: Unavailable if the round is given up meanwhile.
        """
        new = NewCheckpoint(
            **self._place(command), weights=version.weights, optimizer=version.optimizer, delta=version.delta
        )
        needed_bytes = sum(size_of(part) for part in (new.weights, new.optimizer, new.delta) if part is not None)

        def attempt() -> WrittenCheckpoint:
            self._claim(needed_bytes)
            return self._store.write(new)

        return insist(attempt, waits_for, given_up, self._retry)

    def name(self, command: CommitRound, weights: bytes) -> WrittenCheckpoint:
        """Return the record of a version that stays in memory."""
        record = CheckpointRecord(**self._place(command), weights=ref_of(weights), optimizer=None, manifest=None)
        return WrittenCheckpoint(record, delta=None)

    def _place(self, command: CommitRound) -> _Place:
        return {
            "task_id": command.task_id,
            "round": command.round + 1,
            "epoch": command.epoch,
            "cursor": command.cursor,
            "created_at": self._clock.now(),
        }
