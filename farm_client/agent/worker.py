"""One connection's work: take assignments, tell how they go, and answer the farm's orders.

When the connection ends its assignments are dropped, because their leases belong to it; the executors stay for the
next one. A delivered result frees its slot at the farm by itself; ``ready`` tells of every other change.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farm_client.agent.held import Held
from farm_client.agent.job import Job, Tools
from farm_client.agent.link import Link
from farm_client.agent.narrator import Narrator
from farm_client.agent.output import FLUSH_SECONDS
from farm_client.agent.preflight import Standing, refusal
from farm_client.agent.probe import Probe
from farm_client.agent.status import StatusBoard
from protocol.messages import (
    Accept,
    Ack,
    Assign,
    Cancel,
    Drain,
    Error,
    Heartbeat,
    Message,
    Pause,
    Phase,
    Ready,
    RejectCode,
    Result,
)

_IDLE_AFTER_SECONDS: Final = 3.0
"""Between two rounds a client has nothing to do for a moment; that is no news."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker sees and speaks through; it outlives connections."""

    probe: Probe
    board: StatusBoard
    narrator: Narrator
    slots: int


class Worker:
    """The assignments of one connection. They run in ``group``: a mistake of the agent's own ends the group."""

    def __init__(self, tools: Tools, surroundings: Surroundings, link: Link, group: asyncio.TaskGroup) -> None:
        self._tools = tools
        self._around = surroundings
        self._link = link
        self._group = group
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._undelivered: dict[str, Path | None] = {}
        """Results that the farm has not acknowledged, with the update's file if it has one."""
        self._draining = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._latest: Assign | None = None
        """The newest assignment since the last heartbeat."""
        self._idle_since = time.monotonic()

    def start(self) -> None:
        """Tell the farm that this client can work."""
        self._tell_ready()

    def handle(self, message: Message) -> None:
        """Act on one message of the farm; never waits."""
        match message:
            case Assign():
                self._consider(message)
            case Ack():
                self._acknowledged(message)
            case Cancel():
                self._drop(message.assignment_id)
                self._tell_ready()
            case Pause():
                self._free(message)
            case Drain():
                self._around.narrator.tell(f"the farm is going down: {message.reason or 'no reason given'}")
            case Error():
                self._hear_error(message)

    async def beat(self) -> None:
        """Send heartbeats, and what the tasks' code printed, until cancelled."""
        next_beat = time.monotonic()
        while True:
            for job, _ in self._jobs.values():
                self._flush_output(job.held)
            if (now := time.monotonic()) >= next_beat:
                next_beat = now + self._link.welcome.heartbeat_seconds
                self._beat_once()
            await asyncio.sleep(min(FLUSH_SECONDS, self._link.welcome.heartbeat_seconds))

    async def drain(self, reason: str, longest_seconds: float) -> None:
        """Take nothing more, let what is computing finish within ``longest_seconds``, hand the rest back."""
        self._draining = True
        self._tools.pool.retire()
        self._link.post(Drain(reason=reason))
        for assignment_id, (job, _) in tuple(self._jobs.items()):
            if job.held.phase in (Phase.FETCHING, Phase.STARTING):
                self._hand_back(assignment_id, "this client is leaving")
        self._settle()
        try:
            async with asyncio.timeout(longest_seconds):
                await self._settled.wait()
        except TimeoutError:
            for assignment_id in tuple(self._jobs):
                self._hand_back(assignment_id, "this client is leaving and could not finish in time")

    def abandon(self) -> None:
        """The connection is over. An executor in mid-step finishes for itself, and is warm for the next one."""
        for job, doing in self._jobs.values():
            job.let_finish = True
            doing.cancel()
        self._jobs.clear()

    def _consider(self, assign: Assign) -> None:
        held = Held(assign)
        refused = refusal(assign, self._standing(assign))
        if refused is not None:
            self._link.post(held.reject(refused.code, refused.message))
            self._around.narrator.tell(f"handed back work on {assign.task.name}: {refused.message}", **_ids(assign))
            if refused.code is RejectCode.DOES_NOT_FIT:
                self._tools.pool.stop_idle()  # with their memory free the next offer may fit
            self._tell_ready()
            return
        self._link.post(Accept(assignment_id=assign.assignment_id, fence=assign.fence))
        job = Job(held, self._tools, self._link.welcome.inline_bytes)
        self._settled.clear()
        self._latest = assign
        self._jobs[assign.assignment_id] = (job, self._group.create_task(self._do(job)))

    def _standing(self, assign: Assign) -> Standing:
        """Memory is read only where it matters: a task that has its executor has its memory already."""
        must_start = assign.task.needed_ram_bytes > 0 and self._tools.pool.find(assign.task.task_id) is None
        return Standing(
            free_slots=self._around.slots - len(self._jobs),
            ram_free_bytes=self._around.probe.ram_free_bytes() if must_start else None,
            draining=self._draining,
        )

    async def _do(self, job: Job) -> None:
        outcome = await job.do()
        assignment_id = job.held.assign.assignment_id
        self._jobs.pop(assignment_id)
        self._flush_output(job.held)
        self._link.post(outcome)
        if isinstance(outcome, Result):
            self._undelivered[assignment_id] = job.update_file
        else:
            self._around.narrator.tell(f"{job.held.assign.task.name}: {outcome.message}", **_ids(job.held.assign))
            self._tell_ready()
            self._settle()

    def _acknowledged(self, ack: Ack) -> None:
        update_file = self._undelivered.pop(ack.assignment_id, None)
        if update_file is not None:
            update_file.unlink(missing_ok=True)
        if ack.counted:
            self._around.board.delivered += 1
        self._settle()

    def _hear_error(self, error: Error) -> None:
        if error.assignment_id is not None:
            self._drop(error.assignment_id)
            self._undelivered.pop(error.assignment_id, None)
            self._tell_ready()
        self._around.narrator.tell(f"the farm reports: {error.message}")

    def _free(self, pause: Pause) -> None:
        """Free what a task holds here, at once; the farm has taken its assignments back."""
        for assignment_id, (job, _) in tuple(self._jobs.items()):
            if pause.task_id in (None, job.held.assign.task.task_id):
                self._drop(assignment_id)
        self._tools.pool.release(pause.task_id)
        self._tell_ready()

    def _drop(self, assignment_id: str) -> None:
        """Stop doing an assignment, in mid-step if need be."""
        found = self._jobs.pop(assignment_id, None)
        if found is not None:
            found[1].cancel()
            self._settle()

    def _hand_back(self, assignment_id: str, why: str) -> None:
        job, _ = self._jobs[assignment_id]
        self._link.post(job.held.reject(RejectCode.DRAINING, why))
        self._drop(assignment_id)

    def _settle(self) -> None:
        if not self._jobs and not self._undelivered:
            self._settled.set()

    def _tell_ready(self) -> None:
        if not self._draining:
            self._link.post(Ready(slots=max(0, self._around.slots - len(self._jobs))))

    def _flush_output(self, held: Held) -> None:
        message = held.output.take(held.progress)
        if message is not None:
            self._link.post(message)

    def _beat_once(self) -> None:
        if not self._link.congested:
            assignments = tuple(job.held.progress(job.arrived_bytes()) for job, _ in self._jobs.values())
            self._link.post(Heartbeat(load=self._around.probe.load(), assignments=assignments))
        if not self._jobs and self._latest is None:
            self._tell_ready()  # mends a count that went wrong; a busy client's count is never touched
        self._tools.pool.sweep()
        self._show()

    def _show(self) -> None:
        """Say what this client does, with the reason where it is nothing."""
        newest = next((job.held.assign for job, _ in self._jobs.values()), self._latest)
        self._latest = None
        if newest is not None:
            self._idle_since = time.monotonic()
            self._show_work(newest)
        elif time.monotonic() - self._idle_since >= _IDLE_AFTER_SECONDS:
            doing = "leaving" if self._draining else "waiting: the farm has no work for this machine now"
            self._around.narrator.tell(doing)
            self._around.board.show(doing=doing, task="", round=None)

    def _show_work(self, assign: Assign) -> None:
        delivered = self._around.board.delivered
        doing = f"working on {assign.task.name}"
        progress = f"{doing}, round {assign.round} ({delivered} results delivered so far)"
        self._around.narrator.keep_telling(doing, progress, **_ids(assign))
        self._around.board.show(doing=doing, task=assign.task.task_id, round=assign.round)


def _ids(assign: Assign) -> dict[str, str | int]:
    return {"task": assign.task.task_id, "round": assign.round, "assignment": assign.assignment_id}
