"""Removes a task: it leaves the coordinator, then the ledger, then its blobs go, but for those that others need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coordinator.events import Action, Event, TaskAction, TaskRemoved
from coordinator.lifecycle import ACTIVE
from coordinator.records import CheckpointRecord, TaskRecord
from farm_server.housekeeping.retention import Retention
from protocol.errors import NotFound
from storage.ports.ledger import Ledger


class Removal:
    """``ask`` posts an event and waits until that is durable; ``forget`` drops what the server has in memory."""

    def __init__(
        self,
        ledger: Ledger,
        retention: Retention,
        ask: Callable[[Event], Awaitable[None]],
        forget: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._retention = retention
        self._ask = ask
        self._forget = forget

    async def remove(self, task_id: str, *, force: bool) -> None:
        """Remove a task that is over, or with ``force`` cancel it first. Durable on return; blobs follow soon.

        Raises: NotFound; Conflict if it is not over; Unavailable.
        """
        record = await self._ledger.task(task_id)
        if record is None:
            raise NotFound(f"there is no task {task_id}; `farm ls` lists the tasks")
        if force and record.state in ACTIVE:
            await self._ask(TaskAction(task_id, Action.CANCEL))
        await self._ask(TaskRemoved(task_id))
        self._forget(task_id)
        digests = _digests(record, await self._ledger.checkpoints(task_id))
        await self._ledger.remove_task(task_id)
        self._retention.discard(digests)


def _digests(record: TaskRecord, checkpoints: list[CheckpointRecord]) -> set[str]:
    spec = record.spec
    shards = [shard.blob for shard in spec.dataset.shards]
    parts = [ref for c in checkpoints for ref in (c.weights, c.optimizer, c.manifest)]
    refs = [spec.code, spec.initial_weights, spec.frozen, *shards, *parts]
    return {ref.digest for ref in refs if ref is not None}
