"""Queries about tasks, answered from what the coordinator shows and from the ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.lifecycle import ACTIVE, ENDED, TaskState
from coordinator.records import RoundRecord, TaskRecord
from coordinator.shard_audit import shard_books
from farm_server.environment.clock import Clock
from farm_server.tasks.ended_tasks import EndedTasks
from farm_server.tasks.output_lists import without_gap
from protocol.artefacts import ArtefactList, ArtefactView
from protocol.errors import NotFound
from protocol.failed_steps import FailedStepView
from protocol.maps import MAX_LISTED, OutputList
from protocol.rest import (
    CheckpointView,
    Explanation,
    ModelView,
    RoundView,
    ShardBook,
    TaskDetail,
    TaskView,
)
from protocol.tasks import TaskSpec
from storage.ports.ledger import LedgerReader, TaskKey


class TaskViews(Protocol):
    """What the coordinator shows of its tasks: those that have not ended, and those whose end is not durable yet.

    All that take an id raise NotFound for another one; ``now`` is the server's clock.
    """

    def holds(self, task_id: str) -> bool:
        """Whether it has this task."""

    def task_view(self, task_id: str, now: float) -> TaskView:
        """Return one task as it is."""

    def task_views(self, now: float) -> list[TaskView]:
        """Return all of them, newest first."""

    def ended_view(self, record: TaskRecord) -> TaskView:
        """Return a task that only the ledger has."""

    def spec(self, task_id: str) -> TaskSpec:
        """Return what was submitted."""

    def open_round_view(self, task_id: str, now: float) -> RoundView | None:
        """Return the round that is under way, if one is."""

    def why(self, task_id: str, now: float) -> str:
        """Return in a line what the task waits for."""

    def explain(self, task_id: str, now: float) -> Explanation:
        """Return every client's score for the task."""

    def explain_ended(self, record: TaskRecord, now: float) -> Explanation:
        """Return every client's score for a task that only the ledger has."""


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Part of the list of tasks, newest first. ``after``: where the next part begins; None at the end."""

    tasks: Sequence[TaskView]
    after: TaskKey | None


class TaskQueries:
    """Reads, and changes nothing. ``settle`` waits until all that was decided by now is durable.

    What has not ended is shown as the coordinator has it, everything else as the ledger does.
    """

    def __init__(
        self,
        shown: TaskViews,
        ended: EndedTasks,
        ledger: LedgerReader,
        clock: Clock,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._shown = shown
        self._ended = ended
        self._ledger = ledger
        self._clock = clock
        self._settle = settle

    async def view(self, task_id: str) -> TaskView:
        """Return the task as it is, once the ledger has that too: who sees a version can pull it. Raises: NotFound."""
        return (await self._seen(task_id))[0]

    async def _seen(self, task_id: str) -> tuple[TaskView, TaskSpec]:
        if not self._shown.holds(task_id):
            record = await self._ended.record(task_id)
            return self._shown.ended_view(record), record.spec
        view, spec = self._shown.task_view(task_id, self._clock.now()), self._shown.spec(task_id)
        await self._settle()
        return view, spec

    async def page(self, limit: int, before: TaskKey | None = None) -> TaskPage:
        """Return up to ``limit`` tasks, newest first, of those that come after ``before`` in the list."""
        keys = await self._ledger.task_page(limit + 1, before)
        shown = [key.task_id for key in keys[:limit]]
        found = await self.views(shown)
        after = keys[limit - 1] if len(keys) > limit else None
        return TaskPage([found[task_id] for task_id in shown if task_id in found], after)

    async def views(self, task_ids: list[str]) -> dict[str, TaskView]:
        """Return these tasks, by id; unknown ones are left out."""
        now = self._clock.now()
        views = {task_id: self._shown.task_view(task_id, now) for task_id in task_ids if self._shown.holds(task_id)}
        records = await self._ended.records([task_id for task_id in task_ids if task_id not in views])
        return views | {task_id: self._shown.ended_view(record) for task_id, record in records.items()}

    async def names(self, task_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of these tasks, by id; those that were removed are left out."""
        return {task_id: view.name for task_id, view in (await self.views(list(task_ids))).items()}

    def active(self) -> list[TaskView]:
        """Return all tasks that may still train, newest first."""
        return [view for view in self._shown.task_views(self._clock.now()) if view.state in ACTIVE]

    def active_count(self) -> int:
        """Count them."""
        return len(self.active())

    async def counts(self) -> Mapping[TaskState, int]:
        """Return how many tasks are in each state, ended ones included."""
        return await self._ledger.task_counts()

    async def detail(self, task_id: str, rounds: int) -> TaskDetail:
        """Return the task with its specification and newest rounds. Raises: NotFound."""
        view, spec = await self._seen(task_id)
        newest = await self.newest_rounds(task_id, rounds)
        failed_steps = tuple(
            FailedStepView(line=step.line, digest=step.digest, size_bytes=step.size_bytes)
            for step in await self._ledger.failed_steps(task_id)
        )
        return TaskDetail(task=view, spec=spec, rounds=tuple(newest), failed_steps=failed_steps)

    async def newest_rounds(self, task_id: str, limit: int) -> list[RoundView]:
        """Return up to ``limit`` rounds of a task, newest first; the open one, if any, comes before all others."""
        is_here = self._shown.holds(task_id)
        opened = self._shown.open_round_view(task_id, self._clock.now()) if is_here else None
        rounds = [_round_view(r) for r in await self._ledger.rounds(task_id, limit)]
        if opened is not None:
            rounds = [opened, *(r for r in rounds if r.number != opened.number)]
        return rounds[:limit]

    async def why(self, task_id: str) -> str:
        """Return in a line what the task waits for, or how it ended. Raises: NotFound."""
        if self._shown.holds(task_id):
            return self._shown.why(task_id, self._clock.now())
        return self._shown.ended_view(await self._ended.record(task_id)).why

    async def explain(self, task_id: str) -> Explanation:
        """Return the terms of each client's score, and why clients are left out. Raises: NotFound."""
        if self._shown.holds(task_id):
            return self._shown.explain(task_id, self._clock.now())
        return self._shown.explain_ended(await self._ended.record(task_id), self._clock.now())

    async def shard_books(self, task_id: str) -> list[ShardBook]:
        """Return how often each sample was counted, worked out from the counted assignments. Raises: NotFound."""
        _, spec = await self._seen(task_id)
        counted = await self._ledger.assignments(task_id, counted_only=True)
        return shard_books(spec.dataset.shards, counted)

    async def checkpoints(self, task_id: str) -> list[CheckpointView]:
        """Return the checkpoints that are kept, oldest first. Raises: NotFound."""
        _, spec = await self._seen(task_id)
        kept = await self._ledger.checkpoints(task_id)
        return [
            CheckpointView(
                task_id=task_id,
                round=c.round,
                epoch=c.epoch,
                digest=c.weights.digest,
                size_bytes=c.weights.size_bytes,
                frozen=spec.frozen,
                created_at=c.created_at,
                metrics=dict(c.metrics),
                newest=c is kept[-1],
            )
            for c in kept
        ]

    async def artefacts(self, task_id: str) -> ArtefactList:
        """Return what the ends of the task's epochs left. Raises: NotFound."""
        await self._seen(task_id)
        kept = await self._ledger.artefacts(task_id)
        task = await self._ledger.task(task_id)
        return ArtefactList(
            task_id=task_id,
            artefacts=tuple(
                ArtefactView(epoch=file.epoch, name=file.name, digest=file.digest, size_bytes=file.size_bytes)
                for file in kept
            ),
            error=None if task is None else task.epoch_end_error,
        )

    async def outputs(self, task_id: str, start: int) -> OutputList:
        """Return what there is of a map's outputs from an item on, without a gap. Raises: NotFound."""
        view, _ = await self._seen(task_id)  # first: what comes after it may be in the list all the same
        if view.items_total is None:
            raise NotFound(f"task {task_id} is no map: it has a model (`farm pull {task_id}`), and no outputs")
        parts = await self._ledger.outputs(task_id, start, MAX_LISTED)
        failed = await self._ledger.failed_items(task_id, start, MAX_LISTED)
        outputs, missed = without_gap(start, parts, failed)
        is_over = TaskState(view.state) in ENDED
        return OutputList(task_id=task_id, outputs=outputs, failed=missed, items=view.items_total, is_over=is_over)

    async def model(self, task_id: str, number: int | None) -> ModelView:
        """Return the checkpoint of a round, or the newest one. Raises: NotFound."""
        view, spec = await self._seen(task_id)
        checkpoint = await self._ledger.checkpoint(task_id, number)
        if checkpoint is None:
            kept = ", ".join(str(c.round) for c in await self._ledger.checkpoints(task_id)) or "none yet"
            raise NotFound(f"task {task_id} has no checkpoint of round {number}; kept are: {kept}")
        return ModelView(
            task_id=task_id,
            round=checkpoint.round,
            digest=checkpoint.weights.digest,
            size_bytes=checkpoint.weights.size_bytes,
            frozen=spec.frozen,
            metrics=dict(checkpoint.metrics),
            state=view.state,
        )


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
