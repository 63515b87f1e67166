"""The agent's work: takes assignments, reports progress, carries out the farm's orders; over many connections.

Jobs do not notice a connection's end. The next hello names what runs and what waits in the outbox; a lease then goes
on, or the farm cancels it. A delivered result frees its slot at the farm by itself; ``ready`` tells of other changes.
In a pipelined task the slot is free, and said to be, before the result is sent, or even written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from farm_client.agent.connection.heartbeat_interval import HeartbeatIntervals
from farm_client.agent.connection.link import Link
from farm_client.agent.connection.outgoing import Outgoing
from farm_client.agent.machine.probe import Probe
from farm_client.agent.owner.keeper import PolicyKeeper
from farm_client.agent.reporting.display import Display
from farm_client.agent.reporting.status import WorkView
from farm_client.agent.work.acceptance import Acceptance, Moment
from farm_client.agent.work.active_assignments import ActiveAssignments
from farm_client.agent.work.deliveries import Deliveries, UploadPlaces
from farm_client.agent.work.disk_shortage import DiskShortage
from farm_client.agent.work.held_assignment import Held, is_of_this_machine, shown
from farm_client.agent.work.job import Job, Tools
from farm_client.agent.work.job_runner import JobRunner
from farm_client.agent.work.pauses import Pauses
from farm_client.agent.work.preflight import Rejection, not_for_the_owner
from farm_client.agent.work.resting import Doing, Resting
from protocol.assignments import Ack, Assign, Cancel, Phase, Prefetch, Reject, RejectCode
from protocol.messages import Drain, Error, Heartbeat, HeldAssignment, Message, Pace, Pause, Ready
from protocol.resources import LinkFigures
from protocol.wanted_work import ANY_WORK

_MAX_HELD: Final = 64
"""As many assignments as a hello or a heartbeat may name."""
_UPLOADS_PER_SLOT: Final = 2


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What a worker reads and shows."""

    probe: Probe
    display: Display
    slots: int
    owner: PolicyKeeper


class Worker:
    """The assignments of this client. A mistake of the agent's own ends ``watch``, which somebody must await."""

    def __init__(self, tools: Tools, parts: WorkerParts) -> None:
        self._tools = tools
        self._around = parts
        self._acceptance = Acceptance(tools, parts.probe, parts.owner)
        tools.environments.on_change = self._report_ready
        display = parts.display
        self._deliveries = Deliveries(tools.outbox, tools.sender, display.note, display.upload_waits)
        self._places = UploadPlaces(_UPLOADS_PER_SLOT * parts.slots, display.slot_waits)
        self._runner = JobRunner(self._places, self._deliveries, display, self._report_output, self._free_slot)
        self._outgoing = Outgoing()
        self._intervals = HeartbeatIntervals()
        self._beat_due = 0.0
        self._told_figures = LinkFigures()
        """What this connection heard of the link."""
        self._told_wanted = ANY_WORK
        """What it heard of the owner's choice of work."""
        self._active = ActiveAssignments()
        self._resending: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._mistake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._warming: asyncio.Task[None] | None = None
        self._pauses = Pauses(self._outgoing)
        self._disk_shortage = DiskShortage(tools.home, tools.fetcher, self._pauses, display)
        self._resting = Resting(tools, self._active, Doing(self._do, self._spawn, self._hand_back, self._report_ready))
        self._latest: Assign | None = None
        """The newest assignment since the last heartbeat."""
        self._said_idle_at: float | None = None
        """When the farm last heard that this client holds nothing; None if it thinks otherwise."""

    def held(self) -> tuple[HeldAssignment, ...]:
        """Name what outlived the last connection, for the next hello."""
        running = self._active.held(self._tools.outbox)
        return (*running, *self._outgoing.ended(), *self._tools.outbox.held())[:_MAX_HELD]

    @property
    def busy(self) -> bool:
        """Whether an assignment is being done, or its result sent."""
        return not self._active.idle.is_set()

    def views(self) -> tuple[WorkView, ...]:
        """Describe what is being done, for whoever looks on."""
        return tuple(job.held.view() for job in self._active)

    def take_up_left(self) -> None:
        """Go on with what a former process left unfinished; the farm hears of it in the hello, or cancels it."""
        for assign in self._tools.snapshots.left():
            held = Held(assign)
            if self._refusal(assign, resting=None) is not None:
                self._tools.snapshots.drop(assign)
                continue
            self._around.display.note_on(assign, f"going on with {assign.task.name}, which this machine had begun")
            self._begin(held)

    def attach(self, link: Link) -> None:
        """Use this connection: report what ended meanwhile, send what waits, and request work."""
        self._intervals = HeartbeatIntervals.told(link.welcome)
        self._said_idle_at = None
        self._told_figures, self._told_wanted = LinkFigures(), ANY_WORK
        self._outgoing.attach(link)
        for assignment_id in self._deliveries.attach(link):
            self._resend(assignment_id)
        self._pauses.say_again()
        self._report_ready()

    def rest(self, reason: str | None, until: float | None = None) -> None:
        """Do nothing, and free what this machine lends, while the owner has a reason; None: go on with what was begun.

        ``until``: when the reason ends (Unix seconds), if that is known.
        """
        self._resting.change(reason, until)
        self._pauses.say("owner", reason)
        self._around.display.rests(reason)

    def regard_choice(self) -> None:
        """Hand back what the owner does not want done any more, and have the farm ask for the rest anew."""
        self._pauses.ask_again()
        self._report_ready()  # first: what is handed back after it is not offered again
        policy = self._around.owner.policy
        for job in list(self._active):
            refused = not_for_the_owner(job.held.assign, policy.work_for, policy.wanted)
            if refused is not None:
                self._hand_back(job, refused.code, refused.message)
        self._report_ready()

    def detach(self) -> None:
        """The connection is over; work goes on."""
        self._outgoing.detach()
        self._deliveries.detach()

    async def watch(self) -> None:
        """Wait for a mistake of the agent's own, and raise it, once; otherwise for ever."""
        try:
            await asyncio.shield(self._mistake)
        finally:
            if self._mistake.done():
                self._mistake = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Stop everything at once, and wait until it has stopped."""
        tasks = [*self._resting.tasks(), *self._active.tasks(), *self._resending.values()]
        tasks += [self._warming] if self._warming is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def handle(self, message: Message) -> None:
        """Act on one message of the farm; never waits."""
        self._tools.secure.take(message, self._outgoing.post)
        match message:
            case Assign():
                self._said_idle_at = None
                self._take_up(message)
            case Ack():
                self._deliveries.settle(message.assignment_id)
                if message.counted:
                    self._around.display.delivered(message.credit)
            case Cancel():
                self._drop(message.assignment_id)
                self._report_ready()
            case Pause():
                self._free(message)
            case Prefetch() if self._resting.reason is None:
                self._tools.fetcher.prefetch(message.blobs)
            case Pace():
                self._intervals = HeartbeatIntervals.told(message)
                self._beat_due = min(self._beat_due, time.monotonic() + self._intervals.heartbeat_seconds)
            case Drain():
                self._around.display.note(f"the farm is going down: {message.reason or 'no reason given'}")
            case Error():
                self._on_error(message)

    async def beat(self) -> None:
        """Send heartbeats, and what the tasks' code printed, as often as the farm requests, until cancelled."""
        self._beat_due = report_due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= report_due and not self._outgoing.congested:
                report_due = now + self._intervals.progress_seconds
                for job in self._active:
                    self._report_output(job.held)
            if now >= self._beat_due:
                self._beat_due = now + self._intervals.heartbeat_seconds
                self._beat_once()
            await asyncio.sleep(self._intervals.step_seconds)

    async def finish(self) -> None:
        """Take nothing more, and return when all that is held is done and delivered."""
        self._draining = True
        self._tools.pool.retire()
        self._tools.fetcher.stop_prefetching()
        self._outgoing.post(Drain(reason="the volunteer leaves after this"))
        self._around.display.note("finishing: leaving when what is held is done")
        for job in list(self._active) if self._resting.reason is not None else ():
            self._hand_back(job, RejectCode.PAUSED, "this client is leaving, and its owner wants nothing done now")
        await self._active.idle.wait()

    async def drain(self, reason: str, longest_seconds: float) -> None:
        """Take nothing more, let what is computing finish within ``longest_seconds``, hand the rest back.

        Without a connection it is the same: what finishes waits in the outbox for the next join.
        """
        self._draining = True
        self._tools.pool.retire()
        self._tools.pool.abandon()
        self._tools.fetcher.stop_prefetching()
        self._outgoing.post(Drain(reason=reason))
        for job in list(self._active):
            if job.held.phase in (Phase.FETCHING, Phase.STARTING):
                self._hand_back(job, RejectCode.DRAINING, "this client is leaving")
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, longest_seconds)):
                await self._active.idle.wait()
        for job in list(self._active):
            self._hand_back(job, RejectCode.DRAINING, "this client is leaving and could not finish in time")
        await self._deliveries.last_acks()

    def _take_up(self, assign: Assign) -> None:
        held = Held(assign)
        self._tools.fetcher.note_carried(held.blobs())
        try:
            self._consider(held)
        except Exception as error:  # as in ``_do``
            self._around.display.fault_on(assign, error)
            self._give_up(assign, held.failure(error))

    def _consider(self, held: Held) -> None:
        assign = held.assign
        if (lack := self._acceptance.lack(assign.task)) is not None:
            self._give_up(assign, held.failure(lack))
            return
        if (refused := self._refusal(assign, self._resting.reason)) is not None:
            self._outgoing.post(held.reject(refused.code, refused.message))
            self._around.display.note_on(assign, f"handed back work on {assign.task.name}: {refused.message}")
            if refused.code is RejectCode.DOES_NOT_FIT:
                self._tools.pool.stop_idle()  # with their memory free the next offer may fit
            self._report_ready()
            return
        self._outgoing.post(self._tools.secure.accept(assign))
        self._latest = assign
        self._begin(held)

    def _begin(self, held: Held) -> None:
        job = Job(held, self._tools)
        self._active.add(job, self._spawn(self._resting.do(job)))

    def _refusal(self, assign: Assign, resting: str | None) -> Rejection | None:
        free_slots = self._around.slots - self._active.taken_slots
        return self._acceptance.refusal(assign, Moment(free_slots, self._draining, resting))

    async def _do(self, job: Job) -> None:
        assign = job.held.assign
        try:
            problem = await self._runner.run(job)
        except Exception as error:  # whatever an assignment brings about is its own failure, not the agent's
            self._around.display.fault_on(assign, error)
            problem = job.held.failure(error)
        self._active.remove(assign.assignment_id)
        if problem is not None:
            problem = self._disk_shortage.excuse(job.held, problem)
            self._give_up(assign, problem)
        self._count(assign, problem)

    def _count(self, assign: Assign, problem: Error | Reject | None) -> None:
        """Who fails again and again for reasons of this machine pauses by itself; a result is the end of that."""
        if problem is None:
            self._around.owner.worked()
        elif is_of_this_machine(problem):
            self._around.owner.failed(f"{assign.task.name}: {problem.message}")

    def _give_up(self, assign: Assign, problem: Error | Reject) -> None:
        self._outgoing.tell(problem)
        self._around.display.note_on(assign, shown(assign, problem))
        self._report_ready()

    def _free_slot(self, job: Job) -> None:
        self._active.free_slot(job)
        self._report_ready()  # before the result: the farm counts no slot for that

    def _resend(self, assignment_id: str) -> None:
        async def send_again() -> None:
            async with self._places.place():
                await self._deliveries.deliver_again(assignment_id)

        task = self._resending[assignment_id] = self._spawn(send_again())
        task.add_done_callback(lambda _: self._resending.pop(assignment_id, None))

    def _on_error(self, error: Error) -> None:
        if error.assignment_id is not None:
            self._drop(error.assignment_id)
            self._report_ready()
        self._around.display.note(f"the farm reports: {error.message}")

    def _free(self, pause: Pause) -> None:
        """Free what a task holds here, at once; the farm has taken its assignments back."""
        for job in list(self._active):
            if pause.task_id in (None, job.held.assign.task.task_id):
                self._drop(job.held.assign.assignment_id)
        self._tools.pool.release(pause.task_id)
        self._report_ready()

    def _drop(self, assignment_id: str) -> None:
        """Stop doing an assignment, in mid-step or mid-upload if need be, and forget its result."""
        for job in self._active:
            if job.held.assign.assignment_id == assignment_id:
                self._report_last_output(job)
        self._active.mark_over(assignment_id)
        self._tools.pool.abandon()
        for task in (self._active.remove(assignment_id), self._resending.get(assignment_id)):
            if task is not None:
                task.cancel()
        self._tools.outbox.remove(assignment_id)

    def _hand_back(self, job: Job, code: RejectCode, why: str) -> None:
        """A finished one stays in the outbox: it is sent at the next join."""
        assignment_id = job.held.assign.assignment_id
        self._report_last_output(job)
        if assignment_id not in self._tools.outbox:
            self._outgoing.post(job.held.reject(code, why))
        job.held.is_over = True
        if (doing := self._active.remove(assignment_id)) is not None:
            doing.cancel()

    def _report_ready(self) -> None:
        """Report how much more this client can take. While nothing is warm that is nothing: all would wait for it."""
        if self._draining:
            return
        is_cold = self._tools.pool.is_cold
        slots = 0 if is_cold else max(0, self._around.slots - self._active.taken_slots)
        wanted = self._around.owner.policy.wanted
        news = None if wanted == self._told_wanted else wanted
        self._told_wanted = wanted
        self._outgoing.post(Ready(slots=slots, environments=self._tools.environments.news(), wanted=news))
        if is_cold and (self._warming is None or self._warming.done()):
            self._warming = self._spawn(self._report_when_warm())

    async def _report_when_warm(self) -> None:
        await self._tools.pool.warmed_up()
        self._report_ready()

    def _report_last_output(self, job: Job) -> None:
        """Report what a job's code printed before the job is stopped."""
        job.read_output()
        self._report_output(job.held)

    def _report_output(self, held: Held) -> None:
        if (message := held.output.take(held.progress)) is not None:
            self._outgoing.tell(message)

    def _beat_once(self) -> None:
        self._places.beat()
        if self._disk_shortage.look():
            self._report_ready()
        if self._is_beat_due():
            self._send_beat()
        newest = next((job.held.assign for job in self._active), self._latest)
        self._latest = None
        self._around.display.show(newest, self._draining)

    def _is_beat_due(self) -> bool:
        """Whether a heartbeat is due now: a client that holds nothing, and has reported so, beats less often."""
        if self.busy or self._said_idle_at is None:
            return True
        return time.monotonic() >= self._said_idle_at + self._intervals.idle_heartbeat_seconds

    def _send_beat(self) -> None:
        if not self._outgoing.congested:
            progress = tuple(job.held.progress(job.arrived_bytes()) for job in self._active)[:_MAX_HELD]
            figures = self._tools.transfers.link_figures(self._outgoing.measure_round_trip())
            news = None if figures == self._told_figures else figures
            self._told_figures = figures
            load = self._around.probe.load().model_copy(update={"link": news})
            self._outgoing.post(Heartbeat(load=load, assignments=progress))
            self._said_idle_at = None if progress else time.monotonic()
        if not self._active.taken_slots and self._latest is None:
            self._report_ready()  # mends a count that went wrong; a busy client's count is never touched

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._look_for_mistake)
        return task

    def _look_for_mistake(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._mistake.done():
            self._mistake.set_exception(error)
