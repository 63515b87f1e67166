"""The assignments that this client is busy with: those that take a slot, and finished ones on their way to the farm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from farm_client.agent.home.outbox import Outbox
from farm_client.agent.work.job import Job
from protocol.messages import HeldAssignment


class ActiveAssignments:
    """Each assignment has one task, from its acceptance to the end of its delivery."""

    def __init__(self) -> None:
        self._in_slots: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._beside: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self.idle = asyncio.Event()
        """Set while there is nothing."""
        self.idle.set()

    def __iter__(self) -> Iterator[Job]:
        """Go over the jobs of both kinds, those in slots first."""
        return iter([job for book in (self._in_slots, self._beside) for job, _ in book.values()])

    @property
    def taken_slots(self) -> int:
        """Count the assignments that take a slot."""
        return len(self._in_slots)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks that do them."""
        return [task for book in (self._in_slots, self._beside) for _, task in book.values()]

    def add(self, job: Job, task: asyncio.Task[None]) -> None:
        """Take up a job; it takes a slot."""
        self._in_slots[job.held.assign.assignment_id] = (job, task)
        self.idle.clear()

    def hand_over(self, job: Job, to: Callable[[asyncio.Task[None]], asyncio.Task[None]]) -> None:
        """Cancel the task that does an assignment; what ``to`` makes of it does the assignment from now on."""
        assignment_id = job.held.assign.assignment_id
        for book in (self._in_slots, self._beside):
            if (found := book.get(assignment_id)) is not None:
                found[1].cancel()
                book[assignment_id] = (job, to(found[1]))

    def held(self, outbox: Outbox) -> list[HeldAssignment]:
        """Name what is not finished yet, for a hello."""
        assigns = [job.held.assign for job in self if job.held.assign.assignment_id not in outbox]
        return [HeldAssignment(assignment_id=one.assignment_id, fence=one.fence) for one in assigns]

    def free_slot(self, job: Job) -> None:
        """Let the job go on beside the slots, unless it was removed."""
        assignment_id = job.held.assign.assignment_id
        if (found := self._in_slots.pop(assignment_id, None)) is not None:
            self._beside[assignment_id] = found

    def mark_over(self, assignment_id: str) -> None:
        """Note that an assignment is not to be gone on with, by any later process."""
        for book in (self._in_slots, self._beside):
            if (found := book.get(assignment_id)) is not None:
                found[0].held.is_over = True

    def remove(self, assignment_id: str) -> asyncio.Task[None] | None:
        """Drop a job; return its task, if there was one."""
        found = self._in_slots.pop(assignment_id, None) or self._beside.pop(assignment_id, None)
        if not self._in_slots and not self._beside:
            self.idle.set()
        return found[1] if found is not None else None
