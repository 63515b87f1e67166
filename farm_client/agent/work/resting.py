"""Frees this machine while its owner wants nothing done, and goes on with what was begun when that is over.

Assignments stay this client's meanwhile: the farm hears in each heartbeat that they are held, takes back those whose
lease runs out, and counts the others when they are done. What an executor had computed is in its snapshot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from farm_client.agent.work.active_assignments import ActiveAssignments
from farm_client.agent.work.job import Job, Tools
from protocol.assignments import Phase, RejectCode

_KEEPING_SECONDS: Final = 0.8
"""How long executors may take to keep what they did: a second before it a clock's reason is seen, and it is to be over
within two."""


@dataclass(frozen=True, slots=True)
class Doing:
    """How jobs are done: from their beginning to the delivery; in a task of the worker's; and given back undone.

    ``report`` is called when work is welcome again.
    """

    do: Callable[[Job], Coroutine[Any, Any, None]]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    hand_back: Callable[[Job, RejectCode, str], None]
    report: Callable[[], None]


class Resting:
    """``reason`` is why nothing is done now. Changes that come quickly are carried out one after the other."""

    def __init__(
        self, tools: Tools, active: ActiveAssignments, doing: Doing, clock: Callable[[], float] = time.time
    ) -> None:
        """``clock``: Unix seconds."""
        self._tools = tools
        self._active = active
        self._doing = doing
        self._clock = clock
        self.reason: str | None = None
        self._until: float | None = None
        self._is_resting = False
        self._laid_aside: set[str] = set()
        self._over = asyncio.Event()
        self._over.set()
        self._changing: asyncio.Task[None] | None = None

    def change(self, reason: str | None, until: float | None = None) -> None:
        """Rest for a reason, which ends at ``until`` (Unix seconds) if that is known; go on with None."""
        self.reason, self._until = reason, until
        if self._changing is None or self._changing.done():
            self._changing = self._doing.spawn(self._follow())

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the task that carries out a change, if there is one."""
        return [] if self._changing is None else [self._changing]

    async def do(self, job: Job, before: asyncio.Task[None] | None = None) -> None:
        """Do a job once work is welcome, and whoever did it ``before`` has let go of it."""
        try:
            if before is not None:
                await asyncio.wait((before,))
                job.held.phase = Phase.FETCHING
            await self._over.wait()
        except asyncio.CancelledError:
            if job.held.is_over:
                self._tools.snapshots.drop(job.held.assign)
            raise
        if before is None or before.cancelled():  # else it was done after all
            await self._doing.do(job)

    async def _follow(self) -> None:
        while self._is_resting != (self.reason is not None):
            self._is_resting = not self._is_resting
            if self._is_resting:
                await self._lie_down()
            else:
                self._laid_aside.clear()
                self._tools.pool.resume()
                self._over.set()
                self._doing.report()

    async def _lie_down(self) -> None:
        self._over.clear()
        self._tools.fetcher.stop_prefetching()
        self._lay_aside(Phase.FETCHING, Phase.STARTING)
        await self._tools.pool.suspend(_KEEPING_SECONDS)
        self._lay_aside(Phase.FETCHING, Phase.STARTING, Phase.COMPUTING)  # before they see their executors' death

    def _lay_aside(self, *phases: Phase) -> None:
        """Stop what is done of jobs in these phases: they are done from their snapshots later, or handed back."""
        for job in list(self._active):
            assignment_id = job.held.assign.assignment_id
            if job.held.phase not in phases or assignment_id in self._laid_aside or assignment_id in self._tools.outbox:
                continue
            if self._outlasts(job):
                self._doing.hand_back(job, RejectCode.PAUSED, self.reason or "")
                continue
            self._laid_aside.add(assignment_id)
            again = Job(job.held, self._tools)
            self._active.hand_over(again, partial(self._do_again, again))

    def _do_again(self, job: Job, before: asyncio.Task[None]) -> asyncio.Task[None]:
        return self._doing.spawn(self.do(job, before))

    def _outlasts(self, job: Job) -> bool:
        """Whether this rest is known to end after the lease of a job that gets no further meanwhile."""
        return self._until is not None and self._until - self._clock() > job.held.assign.lease_seconds
