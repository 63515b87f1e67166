"""A volunteer's agent with an outbox: it computes in simulated time, delivers, and may do everything wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.records import SampleRange
from protocol.artefacts import Artefact
from protocol.assignments import (
    Accept,
    Ack,
    Assign,
    AssignmentProgress,
    Cancel,
    Kind,
    Phase,
    Reject,
    RejectCode,
    Result,
)
from protocol.credit import CREDIT
from protocol.messages import (
    Bye,
    Drain,
    Error,
    Heartbeat,
    HeldAssignment,
    Hello,
    Message,
    Pause,
    Ready,
    Resume,
    Scope,
    Welcome,
)
from protocol.resources import Load, Resources
from protocol.sandbox import Sandbox, proven_rung
from protocol.secagg.errors import SecureSumFailed
from protocol.secure_messages import PeerShares, RoundKeys, Survivors
from protocol.versions import (
    CARRIED_STATE,
    CONTROL_VARIATES,
    EPOCH_END,
    MAP_ITEMS,
    SECAGG,
    SPLIT_VARIATES,
    TASK_ENVIRONMENT,
)
from tests.simulation.choices import INSTALL_SECONDS, Choices
from tests.simulation.exact_weights import Update, state_of, value_of
from tests.simulation.masked import Masking, masked_update
from tests.simulation.network import Connection
from tests.simulation.scenario import POISON
from tests.simulation.violation import check

if TYPE_CHECKING:
    from tests.simulation.world import World

HEARTBEAT_SECONDS = 3.0
LAST_ACKS_SECONDS = 1.0
GIGABYTE = 10**9
_RESOURCES = Resources(cpu_cores=4, ram_bytes=16 * GIGABYTE)
_FEATURES = (
    EPOCH_END,
    CREDIT,
    MAP_ITEMS,
    SECAGG,
    TASK_ENVIRONMENT,
    CARRIED_STATE,
    CONTROL_VARIATES,
    SPLIT_VARIATES,
)
_LEFT = Artefact(name="loss.txt", digest="f" * 64, size_bytes=3)
"""What an ``on_epoch_end`` leaves."""
_LOAD = Load(ram_free_bytes=8 * GIGABYTE)
_TEAMS = ("red", "", "blue")
_FLOPS = (1000, 1001, 0, 10**15)
"""What a client says of a sample: two count, one does not know, one lies."""


@dataclass(slots=True)
class Job:
    """An accepted assignment; one that is ``stuck`` beats and never gets any further."""

    assign: Assign
    begun_at: float
    seconds: float
    stuck: bool = False

    def progress(self, now: float) -> AssignmentProgress:
        """Say how far it is."""
        share = 0.0 if self.stuck else min((now - self.begun_at) / self.seconds, 1.0)
        return AssignmentProgress(
            assignment_id=self.assign.assignment_id,
            fence=self.assign.fence,
            phase=Phase.COMPUTING if share else Phase.STARTING,
            samples_done=int(share * self.assign.samples),
        )


@dataclass(slots=True)
class Mishap:
    """What goes wrong with the next assignment, by the name of the fault."""

    stuck: bool = False
    rejects: RejectCode | None = None
    fails: Scope | None = None
    counts_wrong: bool = False


@dataclass(eq=False)
class Client:
    """One machine. What is on its disk (``outbox``) outlives a crash, unless the disk does not either."""

    world: World
    name: str
    slots: int
    samples_per_second: float
    keeps_jobs: bool
    """Whether computing goes on when a connection ends."""
    sandboxes: tuple[Sandbox | None, ...]
    """Each start finds one of these."""
    allows: frozenset[str] | None
    """Whose tasks its owner lets it work on; None: anybody's."""
    choices: Choices = field(default_factory=Choices)
    sandbox: Sandbox | None = None
    connection: Connection | None = None
    running: bool = False
    welcomed: bool = False
    paused: bool = False
    draining: bool = False
    partitioned_until: float = 0.0
    slowness: float = 1.0
    next: Mishap = field(default_factory=Mishap)
    jobs: dict[str, Job] = field(default_factory=dict)
    outbox: dict[str, Result] = field(default_factory=dict)
    masking: dict[str, Masking] = field(default_factory=dict)
    """What it knows of secure sums, in memory only."""
    uploading: set[str] = field(default_factory=set)
    """Results of pipelined tasks that are on their way, while their slots are free again."""
    comes_back: bool = False
    """Whether it starts again whenever it has left."""
    life: int = 0
    """Numbers the agent's runs: timers of an earlier one find that it is over."""
    dials: int = 0

    @property
    def client_id(self) -> str:
        """The lasting identity."""
        return f"id-{self.name}"

    def start(self) -> None:
        """Run the agent."""
        if self.running:
            return
        self.running, self.draining, self.paused = True, False, False
        self.life += 1
        self.sandbox = self.world.rng.choice(self.sandboxes) if len(self.sandboxes) > 1 else self.sandboxes[0]
        self._dial()
        self._in_this_life(HEARTBEAT_SECONDS, self._beat)

    def crash(self, keeps_outbox: bool) -> None:
        """End the agent without a word."""
        self.running, self.life = False, self.life + 1
        self.jobs.clear()
        self.masking.clear()
        self.uploading.clear()
        if not keeps_outbox:
            self.outbox.clear()
        if self.connection is not None:
            self.connection.cut()
            self.world.server_notices_later(self.connection)
        self._hang_up()

    def leave(self) -> None:
        """End the agent with a goodbye."""
        self._say(Bye(reason="goodbye"))
        self.running, self.life = False, self.life + 1
        self.jobs.clear()
        self.masking.clear()
        self._hang_up()
        if self.comes_back:
            self.world.agenda.after(1.0, self.start)

    def drain(self) -> None:
        """Finish what is held, then leave."""
        self.draining = True
        self._say(Drain(reason="leaving"))
        self._leave_when_done()

    def pause(self, paused: bool) -> None:
        """The owner wants the machine, or gives it back."""
        self.paused = paused
        self._say(Pause(reason="a game") if paused else Resume())

    def repeat_results(self) -> None:
        """Send all that is not settled once more."""
        self.uploading.clear()
        for result in list(self.outbox.values()):
            self._say(result)

    def notice_later(self, connection: Connection) -> None:
        """Find out after a while that a connection has ended."""
        self.world.agenda.after(self.world.weather.notice_seconds(), lambda: self.notice(connection))

    def receive(self, connection: Connection, message: Message) -> None:
        """Take one message of the server."""
        if not self.running or connection is not self.connection:
            return
        match message:
            case Welcome():
                self._welcomed()
            case Assign():
                self._consider(message)
            case Ack():
                self.outbox.pop(message.assignment_id, None)
                self._leave_when_done()
            case Cancel():
                self._drop(message.assignment_id)
            case RoundKeys() | PeerShares() | Survivors() if message.assignment_id in self.masking:
                self._agree(self.masking[message.assignment_id], message)
            case Pause():
                for job in [j for j in self.jobs.values() if j.assign.task.task_id == message.task_id]:
                    self._drop(job.assign.assignment_id)
                self._tell_ready()

    def _agree(self, masking: Masking, message: RoundKeys | PeerShares | Survivors) -> None:
        """Answer what a secure sum asks; an update that waits for its masks is sent once they are agreed on."""
        try:
            answer = masking.answer(message)
        except SecureSumFailed as error:
            check(False, f"{self.name} is asked for what it must not tell: {error!r}")
            return
        if answer is not None:
            self._say(answer)
        if isinstance(message, PeerShares) and (finish := masking.waiting) is not None:
            masking.waiting = None
            finish()

    def _dial(self) -> None:
        self.dials += 1
        if self.world.server is None or self.partitioned_until > self.world.agenda.now:
            self._in_this_life(self.world.weather.redial_seconds(self.dials), self._dial)
            return
        connection = self.connection = Connection(self.world, self)
        self.welcomed = False
        connection.up(self._hello())
        self._in_this_life(5.0, lambda: None if self.welcomed else self.notice(connection))

    def _hello(self) -> Hello:
        working = [(j.assign.assignment_id, j.assign.fence, False) for j in self.jobs.values()]
        finished = [(r.assignment_id, r.fence, True) for r in self.outbox.values()]
        return Hello(
            versions=(1,),
            client_id=self.client_id,
            client_secret="s" * 16,
            name=self.name,
            team=_TEAMS[sum(self.name.encode()) % len(_TEAMS)],
            features=_FEATURES,
            environments=self.choices.told(),
            sandbox=self.sandbox,
            resources=_RESOURCES,
            load=_LOAD,
            held=tuple(HeldAssignment(assignment_id=i, fence=f, finished=d) for i, f, d in (*working, *finished)),
        )

    def _welcomed(self) -> None:
        self.welcomed, self.dials = True, 0
        self.repeat_results()
        if self.paused:
            self._say(Pause(reason="a game"))
        if self.draining:
            self._say(Drain(reason="leaving"))
        self._tell_ready()
        self._leave_when_done()

    def notice(self, connection: Connection) -> None:
        """Find out that a connection has ended, and dial again."""
        if self.connection is not connection or not self.running:
            return
        connection.cut()
        self.world.server_notices_later(connection)
        self._hang_up()
        if not self.keeps_jobs:
            self.jobs.clear()
        self._in_this_life(self.world.weather.redial_seconds(self.dials), self._dial)

    def _hang_up(self) -> None:
        self.connection, self.welcomed = None, False

    def _consider(self, assign: Assign) -> None:
        check(assign.assignment_id not in self.jobs, f"{assign.assignment_id} is assigned twice")
        has_state = assign.round > 0 and assign.kind is Kind.TRAIN
        expected = state_of(assign.weights.digest) if has_state else None
        check(assign.inner_state == expected, f"{assign.assignment_id} begins with the state of another version")
        least = self.world.ledger.tasks[assign.task.task_id].spec.requirements.sandbox
        holds = least is None or proven_rung(self.sandbox).holds(least)
        check(holds, f"{assign.assignment_id} asks for {least} and comes to {self.sandbox}")
        self.choices.check_offer(assign, self.world.ledger.tasks[assign.task.task_id].spec.topics)
        mishap, self.next = self.next, Mishap()
        code = mishap.rejects
        if self.draining:
            code = RejectCode.DRAINING
        elif len(self.jobs) >= self.slots:
            code = RejectCode.BUSY
        elif self.allows is not None and assign.task.submitter not in self.allows:
            code = RejectCode.OWNER
        elif (missing := self.choices.lacks(assign)) is not None:
            code = RejectCode.ENVIRONMENT
            self._in_this_life(INSTALL_SECONDS, lambda: self._installed(missing))
        if code is not None:
            self._say(Reject(assignment_id=assign.assignment_id, fence=assign.fence, code=code, message="no"))
            self._tell_ready()
            return
        keys = None
        if assign.secure is not None:
            masking = self.masking[assign.assignment_id] = Masking(assign, self.world.draw_bytes)
            keys = masking.keys()
        self._say(Accept(assignment_id=assign.assignment_id, fence=assign.fence, keys=keys))
        seconds = self.slowness * (0.05 + assign.samples / self.samples_per_second) * self.world.rng.uniform(0.7, 1.4)
        job = self.jobs[assign.assignment_id] = Job(assign, self.world.agenda.now, seconds, mishap.stuck)
        if not job.stuck:
            self._in_this_life(seconds, lambda: self._finish(job, mishap))

    def _installed(self, digest: str) -> None:
        self.choices.built.add(digest)
        self._tell_ready()

    def _finish(self, job: Job, mishap: Mishap) -> None:
        assign = job.assign
        if self.jobs.get(assign.assignment_id) is not job:
            return
        masking = self.masking.get(assign.assignment_id)
        if masking is not None and not masking.is_agreed and mishap.fails is None:
            masking.waiting = lambda: self._finish(job, mishap)
            return
        del self.jobs[assign.assignment_id]
        if self._dies_of(assign, mishap):
            self._say(self._death(assign))
            self._tell_ready()
        elif mishap.fails is not None:
            self._say(self._error(assign, mishap.fails))
            self._tell_ready()
        else:
            self.outbox[assign.assignment_id] = self._result(job, mishap.counts_wrong)
            if assign.task.pipeline and assign.kind in {Kind.TRAIN, Kind.MAP}:
                self.uploading.add(assign.assignment_id)
                self._tell_ready()
                seconds = self.world.rng.choice((0.0, 0.3, 2.0)) * self.slowness
                self._in_this_life(seconds, lambda: self._deliver(assign.assignment_id))
            else:
                self._say(self.outbox[assign.assignment_id])
        self._leave_when_done()

    def _deliver(self, assignment_id: str) -> None:
        """Send a result whose update has arrived, unless that was done by a new connection meanwhile."""
        if assignment_id in self.uploading:
            self.uploading.discard(assignment_id)
            if (result := self.outbox.get(assignment_id)) is not None:
                self._say(result)

    def _result(self, job: Job, counts_wrong: bool) -> Result:
        assign = job.assign
        update = None
        if assign.kind in {Kind.TRAIN, Kind.MAP}:
            ranges = [SampleRange(s.shard.index, s.start, s.stop) for s in assign.slices]
            content = Update(assign.assignment_id, value_of(assign.epoch, ranges), assign.samples)
            if (masking := self.masking.get(assign.assignment_id)) is not None:
                content = masked_update(content, masking)
            update = content.ref()
            self.world.updates[update.digest] = content
        return Result(
            assignment_id=assign.assignment_id,
            fence=assign.fence,
            samples=max(assign.samples, 1) + counts_wrong,
            metrics={"loss": 1.0},
            update=update,
            compute_seconds=job.seconds,
            flops_per_sample=_FLOPS[sum(self.name.encode()) % len(_FLOPS)],
            artefacts=(_LEFT,) if assign.kind is Kind.EPOCH_END else (),
        )

    def _error(self, assign: Assign, scope: Scope) -> Error:
        return Error(
            code="executor_died",
            message="out of memory" if scope is Scope.ELSEWHERE else "KeyError: 'x'",
            assignment_id=assign.assignment_id,
            fence=assign.fence,
            scope=scope,
        )

    def _dies_of(self, assign: Assign, mishap: Mishap) -> bool:
        """Whether the executor ends on a map's part: one of its items does that, or the machine, for once."""
        poison = assign.task.config.get(POISON, ())
        ends = any(assign.position <= item < assign.position + assign.samples for item in poison)
        return ends or (bool(poison) and mishap.fails is Scope.ELSEWHERE)

    def _death(self, assign: Assign) -> Error:
        if assign.samples == 1:
            deaths = self.world.audit.deaths.setdefault((assign.task.task_id, assign.position), [])
            deaths.append(self.client_id)
        return self._error(assign, Scope.ELSEWHERE).model_copy(
            update={"code": "killed", "message": "the executor was killed by SIGSEGV"}
        )

    def _drop(self, assignment_id: str) -> None:
        self.jobs.pop(assignment_id, None)
        self.outbox.pop(assignment_id, None)
        self.uploading.discard(assignment_id)
        self._tell_ready()
        self._leave_when_done()

    def _leave_when_done(self) -> None:
        if not (self.running and self.draining and self.welcomed and not self.jobs):
            return
        if not self.outbox:
            self.leave()
        elif not self.uploading:  # what is not settled by then waits on the disk for the next time
            self._in_this_life(LAST_ACKS_SECONDS, lambda: None if self.jobs else self.leave())

    def _beat(self) -> None:
        now = self.world.agenda.now
        self._say(Heartbeat(load=_LOAD, assignments=tuple(job.progress(now) for job in self.jobs.values())))
        if not self.jobs:
            self._tell_ready()
        self._in_this_life(HEARTBEAT_SECONDS, self._beat)

    def _tell_ready(self) -> None:
        if not self.draining:
            slots = max(self.slots - len(self.jobs), 0)
            self._say(Ready(slots=slots, environments=self.choices.told(), wanted=self.choices.wanted))

    def _say(self, message: Message) -> None:
        if self.connection is not None and self.welcomed:
            self.connection.up(message)

    def _in_this_life(self, seconds: float, action: Callable[[], None]) -> None:
        life = self.life
        self.world.agenda.after(seconds, lambda: action() if self.life == life else None)
