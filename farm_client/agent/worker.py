"""The agent's work: take assignments, tell how they go, answer the farm's orders; over one connection after another.

Jobs do not notice a connection's end. The next hello names what runs and what waits in the outbox; a lease then goes
on, or the farm cancels it. A delivered result frees its slot at the farm by itself; ``ready`` tells of other changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from farm_client.agent.deliveries import Deliveries
from farm_client.agent.display import Display
from farm_client.agent.held import Held
from farm_client.agent.job import Job, Tools
from farm_client.agent.link import Link
from farm_client.agent.outbox import Parcel
from farm_client.agent.output import FLUSH_SECONDS
from farm_client.agent.preflight import Standing, refusal
from farm_client.agent.probe import Probe
from farm_client.agent.untold import Telling, Untold
from farm_client.transfer.upload import Listener
from protocol.errors import FarmError
from protocol.limits import INLINE_BYTES
from protocol.messages import (
    Accept,
    Ack,
    Assign,
    Cancel,
    Drain,
    Error,
    Heartbeat,
    HeldAssignment,
    Message,
    Pause,
    Phase,
    Ready,
    Reject,
    RejectCode,
)

_MAX_HELD: Final = 64
"""As many assignments as a hello may name."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker sees and speaks through."""

    probe: Probe
    display: Display
    slots: int


class Worker:
    """The assignments of this client. A mistake of the agent's own ends ``watch``, which somebody must await."""

    def __init__(self, tools: Tools, surroundings: Surroundings) -> None:
        self._tools = tools
        self._around = surroundings
        display = surroundings.display
        self._deliveries = Deliveries(tools.outbox, tools.transfers, display.note, display.upload_waits)
        self._link: Link | None = None
        self._inline_bytes = INLINE_BYTES
        self._jobs: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._resending: dict[str, asyncio.Task[None]] = {}
        self._untold = Untold()
        """What was said without a connection, or into one that broke before it arrived."""
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._mistake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warming: asyncio.Task[None] | None = None
        self._latest: Assign | None = None
        """The newest assignment since the last heartbeat."""

    def held(self) -> tuple[HeldAssignment, ...]:
        """Name what outlived the last connection, for the next hello."""
        running = [
            HeldAssignment(assignment_id=i, fence=job.held.assign.fence)
            for i, (job, _) in self._jobs.items()
            if i not in self._tools.outbox
        ]
        failed = [
            HeldAssignment(assignment_id=m.assignment_id, fence=m.fence)
            for m in self._untold.endings()
            if m.assignment_id is not None and m.fence is not None
        ]
        return (*running, *failed, *self._tools.outbox.held())[:_MAX_HELD]

    @property
    def busy(self) -> bool:
        """Whether an assignment is being done."""
        return bool(self._jobs)

    def attach(self, link: Link) -> None:
        """Speak over this connection: say how things ended meanwhile, send what waits, and ask for work."""
        self._link, self._inline_bytes = link, link.welcome.inline_bytes
        for message in self._untold.messages():
            link.tell(message)
        self._untold.clear()
        for assignment_id in self._deliveries.attach(link):
            self._resend(assignment_id)
        self._tell_ready()

    def detach(self) -> None:
        """The connection is over; work goes on."""
        if self._link is not None:
            for message in self._link.untold():
                self._untold.add(message)
        self._link = None
        self._deliveries.detach()

    async def watch(self) -> None:
        """Wait for a mistake of the agent's own, and raise it; otherwise for ever."""
        await asyncio.shield(self._mistake)

    async def close(self) -> None:
        """Stop everything at once, and wait until it has stopped."""
        tasks = [*(doing for _, doing in self._jobs.values()), *self._resending.values()]
        tasks += [self._warming] if self._warming is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handle(self, message: Message) -> None:
        """Act on one message of the farm; never waits."""
        match message:
            case Assign():
                self._consider(message)
            case Ack():
                self._deliveries.settle(message.assignment_id)
                if message.counted:
                    self._around.display.delivered()
            case Cancel():
                self._drop(message.assignment_id)
                self._tell_ready()
            case Pause():
                self._free(message)
            case Drain():
                self._around.display.note(f"the farm is going down: {message.reason or 'no reason given'}")
            case Error():
                self._hear_error(message)

    async def beat(self, heartbeat_seconds: float) -> None:
        """Send heartbeats, and what the tasks' code printed, until cancelled."""
        next_beat = time.monotonic()
        while True:
            for job, _ in self._jobs.values():
                self._tell_output(job.held)
            if (now := time.monotonic()) >= next_beat:
                next_beat = now + heartbeat_seconds
                self._beat_once()
            await asyncio.sleep(min(FLUSH_SECONDS, heartbeat_seconds))

    async def drain(self, reason: str, longest_seconds: float) -> None:
        """Take nothing more, let what is computing finish within ``longest_seconds``, hand the rest back.

        Without a connection it is the same: what finishes waits in the outbox for the next join.
        """
        self._draining = True
        self._tools.pool.retire()
        self._post(Drain(reason=reason))
        for assignment_id, (job, _) in tuple(self._jobs.items()):
            if job.held.phase in (Phase.FETCHING, Phase.STARTING):
                self._hand_back(assignment_id, "this client is leaving")
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, longest_seconds)):
                await self._idle.wait()
        for assignment_id in tuple(self._jobs):
            self._hand_back(assignment_id, "this client is leaving and could not finish in time")
        await self._deliveries.last_acks()

    def _consider(self, assign: Assign) -> None:
        held = Held(assign)
        refused = refusal(assign, self._standing(assign))
        if refused is not None:
            self._post(held.reject(refused.code, refused.message))
            self._around.display.note_on(assign, f"handed back work on {assign.task.name}: {refused.message}")
            if refused.code is RejectCode.DOES_NOT_FIT:
                self._tools.pool.stop_idle()  # with their memory free the next offer may fit
            self._tell_ready()
            return
        self._post(Accept(assignment_id=assign.assignment_id, fence=assign.fence))
        job = Job(held, self._tools, self._inline_bytes)
        self._idle.clear()
        self._latest = assign
        self._jobs[assign.assignment_id] = (job, self._spawn(self._do(job)))

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
        self._tell_output(job.held)
        problem = await self._deliver(job, outcome) if isinstance(outcome, Parcel) else outcome
        assign = job.held.assign
        self._jobs.pop(assign.assignment_id)
        self._settle()
        if problem is not None:
            self._tell(problem)
            self._around.display.note_on(assign, f"{assign.task.name}: {problem.message}")
            self._tell_ready()

    async def _deliver(self, job: Job, parcel: Parcel) -> Error | Reject | None:
        job.held.phase = Phase.UPLOADING
        try:
            await self._deliveries.deliver(parcel, Listener(meter=job.held.sent, waits=job.held.waited))
        except (FarmError, OSError) as error:
            return job.held.failure(error)
        return None

    def _resend(self, assignment_id: str) -> None:
        task = self._resending[assignment_id] = self._spawn(self._deliveries.deliver_again(assignment_id))
        task.add_done_callback(lambda _: self._resending.pop(assignment_id, None))

    def _tell(self, message: Telling) -> None:
        """Say something of an assignment, now or after the next welcome."""
        if self._link is not None:
            self._link.tell(message)
        else:
            self._untold.add(message)

    def _hear_error(self, error: Error) -> None:
        if error.assignment_id is not None:
            self._drop(error.assignment_id)
            self._tell_ready()
        self._around.display.note(f"the farm reports: {error.message}")

    def _free(self, pause: Pause) -> None:
        """Free what a task holds here, at once; the farm has taken its assignments back."""
        for assignment_id, (job, _) in tuple(self._jobs.items()):
            if pause.task_id in (None, job.held.assign.task.task_id):
                self._drop(assignment_id)
        self._tools.pool.release(pause.task_id)
        self._tell_ready()

    def _drop(self, assignment_id: str) -> None:
        """Stop doing an assignment, in mid-step if need be, and forget its result."""
        found = self._jobs.pop(assignment_id, None)
        if found is not None:
            found[1].cancel()
            self._settle()
        if (resending := self._resending.get(assignment_id)) is not None:
            resending.cancel()
        self._tools.outbox.remove(assignment_id)

    def _hand_back(self, assignment_id: str, why: str) -> None:
        """A finished one stays in the outbox: it is sent at the next join."""
        job, doing = self._jobs.pop(assignment_id)
        if assignment_id not in self._tools.outbox:
            self._post(job.held.reject(RejectCode.DRAINING, why))
        doing.cancel()
        self._settle()

    def _settle(self) -> None:
        if not self._jobs:
            self._idle.set()

    def _tell_ready(self) -> None:
        """Say how much more this client can take. While nothing is warm that is nothing: all would wait for it."""
        if self._draining:
            return
        is_cold = self._tools.pool.is_cold
        self._post(Ready(slots=0 if is_cold else max(0, self._around.slots - len(self._jobs))))
        if is_cold and (self._warming is None or self._warming.done()):
            self._warming = self._spawn(self._tell_when_warm())

    async def _tell_when_warm(self) -> None:
        await self._tools.pool.warmed_up()
        self._tell_ready()

    def _tell_output(self, held: Held) -> None:
        if (message := held.output.take(held.progress)) is not None:
            self._tell(message)

    def _post(self, message: Message) -> None:
        """Say something that only matters to the connection there is."""
        if self._link is not None:
            self._link.post(message)

    def _beat_once(self) -> None:
        if self._link is not None and not self._link.congested:
            assignments = tuple(job.held.progress(job.arrived_bytes()) for job, _ in self._jobs.values())
            self._post(Heartbeat(load=self._around.probe.load(), assignments=assignments))
        if not self._jobs and self._latest is None:
            self._tell_ready()  # mends a count that went wrong; a busy client's count is never touched
        self._tools.pool.sweep()
        newest = next((job.held.assign for job, _ in self._jobs.values()), self._latest)
        self._latest = None
        self._around.display.show(newest, self._draining)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._look_for_mistake)
        return task

    def _look_for_mistake(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._mistake.done():
            self._mistake.set_exception(error)
