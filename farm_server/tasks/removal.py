"""Removes a task: it leaves the coordinator, then the ledger, then its blobs go, but for those that others need."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.events import Action, TaskAction, TaskRemoved
from coordinator.lifecycle import ACTIVE
from coordinator.records import CheckpointRecord, TaskRecord
from farm_server.housekeeping.retention import Retention
from farm_server.tasks.ended_tasks import EndedTasks
from protocol.bounds import MAX_COUNT
from storage.ports.ledger import Ledger


class Removal:
    """``tasks`` hands the coordinator an order, and returns once that is durable.

    ``forget`` is told the task before its rows go, so that no log line or metric is written after them.
    """

    def __init__(self, ledger: Ledger, retention: Retention, tasks: EndedTasks, forget: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._retention = retention
        self._tasks = tasks
        self._forget = forget

    async def remove(self, task_id: str, *, force: bool) -> None:
        """Remove a task that is over, or with ``force`` cancel it first. Durable on return; blobs follow soon.

        Raises: NotFound; Conflict if it is not over; Unavailable.
        """
        record = await self._tasks.record(task_id)
        if force and record.state in ACTIVE:
            await self._tasks.ask(TaskAction(task_id, Action.CANCEL))
        with self._tasks.removing(task_id):
            await self._tasks.ask(TaskRemoved(task_id))
            digests = _digests(record, await self._ledger.checkpoints(task_id))
            digests |= {step.digest for step in await self._ledger.failed_steps(task_id)}
            digests |= {file.digest for file in await self._ledger.artefacts(task_id)}
            digests |= {part.digest for part in await self._ledger.outputs(task_id, limit=MAX_COUNT)}
            self._forget(task_id)
            await self._ledger.remove_task(task_id)
            self._retention.discard(digests)


def _digests(record: TaskRecord, checkpoints: list[CheckpointRecord]) -> set[str]:
    spec = record.spec
    shards = [shard.blob for shard in spec.dataset.shards]
    parts = [ref for c in checkpoints for ref in c.blobs]
    base = [file.blob for file in spec.base]
    refs = [spec.code, spec.initial_weights, spec.frozen, spec.environment, *base, *shards, *parts]
    return {ref.digest for ref in refs if ref is not None}
