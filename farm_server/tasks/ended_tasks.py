"""Tasks that have ended: the ledger alone has them, and they come back when a person asks something of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from coordinator.events import Event, TaskAction, TaskPrioritized, TaskRecalled, TaskRemoved
from coordinator.farm import unknown_task
from coordinator.lifecycle import ENDED
from coordinator.records import TaskRecord
from storage.ports.ledger import LedgerReader

Request = TaskAction | TaskPrioritized | TaskRemoved


class EndedTasks:
    """On the event loop. ``holds`` says whether the coordinator has a task; ``ask`` tells it, durably on return."""

    def __init__(
        self, ledger: LedgerReader, holds: Callable[[str], bool], ask: Callable[[Event], Awaitable[None]]
    ) -> None:
        self._ledger = ledger
        self._holds = holds
        self._ask = ask
        self._removing: set[str] = set()
        self._recalling = asyncio.Lock()
        """One at a time: what was read of a task must not be older than what happened to it since."""

    async def record(self, task_id: str) -> TaskRecord:
        """Return what the ledger has of a task. Raises: NotFound, also while it is being removed."""
        record = None if task_id in self._removing else await self._ledger.task(task_id)
        if record is None:
            raise unknown_task(task_id)
        return record

    async def require(self, task_id: str) -> None:
        """See that there is such a task, in memory or in the ledger. Raises: NotFound."""
        if self._holds(task_id):
            return
        if task_id in self._removing or await self._ledger.task_end(task_id) is None:
            raise unknown_task(task_id)

    async def records(self, task_ids: list[str]) -> dict[str, TaskRecord]:
        """Return what the ledger has of these tasks, by id; what is removed or being removed is left out."""
        wanted = [task_id for task_id in task_ids if task_id not in self._removing]
        return {record.task_id: record for record in await self._ledger.tasks(wanted)} if wanted else {}

    async def ask(self, request: Request) -> None:
        """Ask something of any task, in memory or not; durable on return. Raises: as the coordinator; Unavailable."""
        if request.task_id in self._removing and not isinstance(request, TaskRemoved):
            raise unknown_task(request.task_id)
        async with self._recalling:
            event = await self._with_record(request)
        await self._ask(event)  # it is told at once: nothing else runs in between

    async def _with_record(self, request: Request) -> Event:
        if self._holds(request.task_id):
            return request
        record = await self._ledger.task(request.task_id)
        if record is None or record.state not in ENDED:
            return request
        checkpoint = await self._ledger.checkpoint(request.task_id)
        failed_steps = await self._ledger.failed_steps(request.task_id)
        return TaskRecalled(record, checkpoint, request, tuple(failed_steps))

    @contextmanager
    def removing(self, task_id: str) -> Iterator[None]:
        """Let nobody see or recall a task while it is removed. Raises: NotFound if somebody removes it already."""
        if task_id in self._removing:
            raise unknown_task(task_id)
        self._removing.add(task_id)
        try:
            yield
        finally:
            self._removing.discard(task_id)
