"""Queries about tasks, answered from what the coordinator shows and from the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from coordinator.lifecycle import TaskState
from coordinator.records import RoundRecord
from coordinator.shard_audit import shard_books
from farm_server.environment.clock import Clock
from protocol.errors import NotFound
from protocol.rest import CheckpointView, Explanation, ModelView, RoundView, ShardBook, TaskDetail, TaskView
from protocol.tasks import BlobRef, TaskSpec
from storage.ports.ledger import Ledger


class TaskViews(Protocol):
    """What the coordinator shows of its tasks. All raise NotFound for an unknown one; ``now`` is the server's clock."""

    def task_view(self, task_id: str, now: float) -> TaskView:
        """Return one task as it is."""

    def task_views(self, now: float, newest: int | None = None) -> list[TaskView]:
        """Return all tasks, or the newest so many, newest first."""

    def task_states(self) -> Sequence[TaskState]:
        """Return the state of each task."""

    def spec(self, task_id: str) -> TaskSpec:
        """Return what was submitted."""

    def open_round_view(self, task_id: str, now: float) -> RoundView | None:
        """Return the round that is under way, if one is."""

    def why(self, task_id: str, now: float) -> str:
        """Return in a line what the task waits for."""

    def explain(self, task_id: str, now: float) -> Explanation:
        """Return every client's score for the task."""


class TaskQueries:
    """Reads, and changes nothing. ``settle`` waits until all that was decided by now is durable."""

    def __init__(self, shown: TaskViews, ledger: Ledger, clock: Clock, settle: Callable[[], Awaitable[None]]) -> None:
        self._shown = shown
        self._ledger = ledger
        self._clock = clock
        self._settle = settle

    def at_once(self, task_id: str) -> TaskView:
        """Return the task as it is, which may not be durable yet. Raises: NotFound."""
        return self._shown.task_view(task_id, self._clock.now())

    async def view(self, task_id: str) -> TaskView:
        """Return the task as it is, once the ledger has that too: who sees a version can pull it. Raises: NotFound."""
        view = self.at_once(task_id)
        await self._settle()
        return view

    def views(self, newest: int | None = None) -> list[TaskView]:
        """Return all tasks, or the newest so many, newest first."""
        return self._shown.task_views(self._clock.now(), newest)

    def states(self) -> Sequence[TaskState]:
        """Return the state of each task."""
        return self._shown.task_states()

    async def detail(self, task_id: str, rounds: int) -> TaskDetail:
        """Return the task with its specification and newest rounds. Raises: NotFound."""
        view = await self.view(task_id)
        newest = await self.newest_rounds(task_id, rounds)
        return TaskDetail(task=view, spec=self._shown.spec(task_id), rounds=tuple(newest))

    async def newest_rounds(self, task_id: str, limit: int) -> list[RoundView]:
        """Return up to ``limit`` rounds, newest first; the open round, if any, comes before all others.

        Raises: NotFound.
        """
        opened = self._shown.open_round_view(task_id, self._clock.now())
        rounds = [_round_view(r) for r in await self._ledger.rounds(task_id, limit)]
        if opened is not None:
            rounds = [opened, *(r for r in rounds if r.number != opened.number)]
        return rounds[:limit]

    def why(self, task_id: str) -> str:
        """Return in a line what the task waits for. Raises: NotFound."""
        return self._shown.why(task_id, self._clock.now())

    def explain(self, task_id: str) -> Explanation:
        """Return the terms of each client's score, and why clients are left out. Raises: NotFound."""
        return self._shown.explain(task_id, self._clock.now())

    async def shard_books(self, task_id: str) -> list[ShardBook]:
        """Return how often each sample was counted, worked out from the counted assignments. Raises: NotFound."""
        spec = self._shown.spec(task_id)
        counted = await self._ledger.assignments(task_id, counted_only=True)
        return shard_books(spec.dataset.shards, counted)

    async def checkpoints(self, task_id: str) -> list[CheckpointView]:
        """Return the checkpoints that are kept, oldest first. Raises: NotFound."""
        await self.view(task_id)
        kept = await self._ledger.checkpoints(task_id)
        frozen = await self._frozen(task_id)
        return [
            CheckpointView(
                task_id=task_id,
                round=c.round,
                epoch=c.epoch,
                digest=c.weights.digest,
                size_bytes=c.weights.size_bytes,
                frozen=frozen,
                created_at=c.created_at,
                metrics=dict(c.metrics),
                newest=c is kept[-1],
            )
            for c in kept
        ]

    async def model(self, task_id: str, number: int | None) -> ModelView:
        """Return the checkpoint of a round, or the newest one. Raises: NotFound."""
        view = await self.view(task_id)
        checkpoint = await self._ledger.checkpoint(task_id, number)
        if checkpoint is None:
            kept = ", ".join(str(c.round) for c in await self._ledger.checkpoints(task_id)) or "none yet"
            raise NotFound(f"task {task_id} has no checkpoint of round {number}; kept are: {kept}")
        return ModelView(
            task_id=task_id,
            round=checkpoint.round,
            digest=checkpoint.weights.digest,
            size_bytes=checkpoint.weights.size_bytes,
            frozen=await self._frozen(task_id),
            metrics=dict(checkpoint.metrics),
            state=view.state,
        )

    async def _frozen(self, task_id: str) -> BlobRef | None:
        record = await self._ledger.task(task_id)
        return None if record is None else record.spec.frozen


def _round_view(record: RoundRecord) -> RoundView:
    return RoundView(
        number=record.number,
        state=record.state,
        epoch=record.epoch,
        samples=record.samples,
        clients=record.clients,
        seconds=None if record.committed_at is None else record.committed_at - record.opened_at,
        loss=record.loss,
        metrics=dict(record.metrics),
        committed_at=record.committed_at,
    )
