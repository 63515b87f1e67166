"""A farm without I/O: the real coordinator, the shipped in-memory ledger's facts, and scripted clients.

Time is a number that tests move. Each command is checked while it is carried out, so that any test that uses the
simulation also checks the invariants: folds in order and at most once, no assignment held twice, and so on.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from coordinator.commands import (
    Command,
    CommitRound,
    ConfirmEnd,
    DropClient,
    DropRound,
    Fold,
    OpenRound,
    ReleaseTask,
    ReportDefect,
    Save,
    Send,
)
from coordinator.engine import Coordinator
from coordinator.events import (
    AssignmentAccepted,
    AssignmentFailed,
    CheckpointDurable,
    ClientConnected,
    ClientLost,
    ClientReady,
    EndConfirmed,
    Event,
    Restored,
    ResultArrived,
    RoundAggregated,
    TaskAction,
    TaskPrioritized,
    TaskRecalled,
    TaskRemoved,
    TaskSubmitted,
    Tick,
)
from coordinator.lifecycle import ENDED
from coordinator.records import (
    AssignmentRecord,
    CheckpointRecord,
    EventRecord,
    LogRecord,
    RoundRecord,
    Snapshot,
    TaskRecord,
)
from coordinator.settings import CoordinatorSettings
from protocol.artefacts import Artefact
from protocol.assignments import Assign, Kind
from protocol.digests import digest_bytes
from protocol.environments import Environments
from protocol.messages import HeldAssignment, Hello, Message, Scope
from protocol.recipe import Recipe, Requirements
from protocol.resources import Load, Resources
from protocol.sandbox import Sandbox
from protocol.tasks import BlobRef, Dataset, Shard, Split, TaskSpec, WeightsDelta
from storage.memory_facts import MemoryFacts

GIGABYTE = 10**9


def blob(name: str) -> BlobRef:
    return BlobRef(digest=digest_bytes(name.encode()), size_bytes=len(name))


def spec(
    shards: tuple[int, ...] = (10, 10, 10, 10),
    holdout: tuple[int, ...] = (),
    name: str = "task",
    requirements: Requirements | None = None,
    submitter: str = "ada",
    priority: int = 5,
    **recipe: object,
) -> TaskSpec:
    recipe.setdefault("rounds", 4)
    recipe.setdefault("round_samples", 20)
    recipe.setdefault("batch_samples", 1)
    recipe.setdefault("gather_seconds", 0.0)
    parts = [(n, Split.TRAIN) for n in shards] + [(n, Split.HOLDOUT) for n in holdout]
    return TaskSpec(
        name=name,
        submitter=submitter,
        priority=priority,
        code=blob("code"),
        initial_weights=blob("weights"),
        dataset=Dataset(
            kind="files",
            shards=tuple(
                Shard(index=i, split=split, samples=n, blob=blob(f"shard{i}")) for i, (n, split) in enumerate(parts)
            ),
        ),
        recipe=Recipe(**recipe),
        requirements=requirements or Requirements(),
    )


class Ledger(MemoryFacts):
    """What the shipped in-memory ledger holds, as a disk that takes each transaction at once."""

    def save(self, command: Save) -> None:
        """Take in one transaction."""
        for record in command.records:
            update = record.update if isinstance(record, AssignmentRecord) else None
            assert update is None or update.inline is None, "bytes do not belong in the ledger"
        self.apply(command.records, command.entries)

    def request(self, event: Event) -> Event:
        """Return what a person asks of a task that has ended, with what is recorded of that task."""
        if not isinstance(event, TaskAction | TaskPrioritized | TaskRemoved):
            return event
        record = self.tasks.get(event.task_id)
        if record is None or record.state not in ENDED:
            return event
        newest = next(iter(reversed(self.checkpoints_of(event.task_id))), None)
        return TaskRecalled(record, newest, event, tuple(self.failed_steps_of(event.task_id)))

    @property
    def events(self) -> list[EventRecord]:
        """All events, oldest first."""
        return [one.entry for one in self.feeds[EventRecord]]

    @property
    def logs(self) -> list[LogRecord]:
        """All log lines, oldest first."""
        return [one.entry for one in self.feeds[LogRecord]]

    def counted(self, task_id: str, epoch: int) -> dict[tuple[int, int], int]:
        """How often each (shard, row) was counted in an epoch."""
        times: dict[tuple[int, int], int] = {}
        for record in self.assignments.values():
            if record.task_id == task_id and record.epoch == epoch and record.counted:
                for r in record.ranges:
                    for row in range(r.start, r.stop):
                        times[r.shard, row] = times.get((r.shard, row), 0) + 1
        return times


@dataclass
class Volunteer:
    """A scripted client: it holds assignments until the test (or ``Simulation.run``) lets it act."""

    name: str
    slots: int = 1
    gflops: float = 0.0
    ram_bytes: int = 16 * GIGABYTE
    free_bytes: int = 8 * GIGABYTE
    cpu_cores: int = 4
    tags: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ("int8",)
    features: tuple[str, ...] = ()
    sandbox: Sandbox | None = None
    environments: Environments | None = None
    team: str = ""
    flops_per_sample: int = 0
    leaves: tuple[Artefact, ...] = ()
    """What its ``on_epoch_end`` leaves."""
    incarnation: int = 0
    online: bool = False
    held: deque[Assign] = field(default_factory=deque)
    outbox: dict[str, tuple[Assign, float, float]] = field(default_factory=dict)
    """Finished work with its loss and seconds, until the farm has settled it."""
    messages: list[Message] = field(default_factory=list)

    def hello(self) -> Hello:
        return Hello(
            versions=(1,),
            client_id=f"id-{self.name}",
            client_secret="s" * 16,
            name=self.name,
            tags=self.tags,
            cached=self.cached,
            codecs=self.codecs,
            features=self.features,
            sandbox=self.sandbox,
            environments=self.environments,
            team=self.team,
            resources=Resources(cpu_cores=self.cpu_cores, ram_bytes=self.ram_bytes, bench_gflops=self.gflops),
            load=Load(ram_free_bytes=self.free_bytes),
            held=tuple(
                HeldAssignment(assignment_id=a.assignment_id, fence=a.fence, finished=a.assignment_id in self.outbox)
                for a in (*self.held, *(assign for assign, _, _ in self.outbox.values()))
            ),
        )


class Simulation:
    """The shell: carries out commands at once, unless ``hold_commits`` and ``hold_writes`` keep outcomes back."""

    def __init__(self, seed: int = 0, settings: CoordinatorSettings | None = None) -> None:
        self.rng = random.Random(seed)
        self.settings = settings or CoordinatorSettings()
        self.ledger = Ledger()
        self.now = 1_000_000.0
        self.volunteers: dict[str, Volunteer] = {}
        self.log: list[Command] = []
        self.open: dict[str, tuple[int, int]] = {}
        self.folded: dict[str, list[tuple[str, int]]] = {}
        self.counted_in: dict[str, int] = {}
        self.defects: list[ReportDefect] = []
        self.expects_defects = False
        """Whether a test plants defects; any other is an error."""
        self.hold_commits = False
        self.delta_bytes = 0
        self.weights_size: dict[str, int] = {}
        """The size of what leads from a version to the next; 0 where there are only whole versions."""
        self.pending_commits: list[CommitRound] = []
        self.hold_writes = False
        self.unwritten: list[CheckpointDurable] = []
        """Checkpoints that are not durable: those that ``hold_writes`` keeps back."""
        self._queue: deque[Command] = deque()
        self._draining = False
        self._ids = 0
        self._incarnation = 0
        self.coordinator = self._start(Snapshot())

    def _start(self, snapshot: Snapshot) -> Coordinator:
        return Coordinator(snapshot, self.settings, self._new_id, self.rng.random)

    def _new_id(self) -> str:
        self._ids += 1
        return f"a{self._ids}"

    # the shell

    def handle(self, event: Event) -> list[Command]:
        held = self.coordinator.holds(getattr(event, "task_id", ""))
        commands = self.coordinator.handle(event if held else self.ledger.request(event), self.now)
        assert all(not isinstance(c, Save) for c in commands[1:]), "one Save, first"
        self._queue += commands
        if not self._draining:  # what follows from a command comes after the commands before it, as in the server
            self._draining = True
            try:
                while self._queue:
                    self._carry_out(self._queue.popleft())
            finally:
                self._draining = False
        return commands

    def _carry_out(self, command: Command) -> None:
        self.log.append(command)
        match command:
            case Save():
                self._save(command)
            case Send() | DropClient():
                self._deliver(command)
            case OpenRound():
                self.open[command.task_id] = (command.round, command.attempt)
                self.folded[command.task_id] = []
                assert command.checkpoint.round == command.round
            case Fold():
                assert self.open[command.task_id] == (command.round, command.attempt)
                done = self.folded[command.task_id]
                assert command.assignment_id not in [a for a, _ in done], "folded twice"
                done.append((command.assignment_id, command.samples))
            case CommitRound():
                assert self.open[command.task_id] == (command.round, command.attempt)
                self.pending_commits.append(command)
                if not self.hold_commits:
                    self.finish_commits()
            case DropRound() | ReleaseTask():
                self.open.pop(command.task_id, None)
            case ConfirmEnd():
                self.handle(EndConfirmed(command.record))
            case ReportDefect():
                self._report(command)

    def _report(self, command: ReportDefect) -> None:
        self.defects.append(command)
        if not self.expects_defects:
            raise AssertionError(command.message) from command.error

    def _save(self, command: Save) -> None:
        self.ledger.save(command)
        committed = [r.number for r in command.records if isinstance(r, RoundRecord) and r.committed_at]
        for record in command.records:
            if isinstance(record, AssignmentRecord) and record.counted:
                self.counted_in[record.assignment_id] = committed[0] if committed else record.round

    def finish_commits(self) -> None:
        while self.pending_commits:
            c = self.pending_commits.pop(0)
            checkpoint = CheckpointRecord(
                task_id=c.task_id,
                round=c.round + 1,
                epoch=c.epoch,
                cursor=c.cursor,
                weights=blob(f"{c.task_id}/{c.round + 1}").model_copy(update=self.weights_size),
                optimizer=None,
                manifest=blob(f"manifest {c.task_id}/{c.round + 1}"),
                created_at=self.now,
                inner_state=blob(f"state {c.task_id}/{c.round + 1}"),
            )
            delta = self._delta(c, checkpoint)
            self.handle(RoundAggregated(c.task_id, c.round, c.attempt, checkpoint, delta))
            self.unwritten.append(CheckpointDurable(c.task_id, c.attempt, checkpoint))
            if not self.hold_writes:
                self.finish_writes()

    def finish_writes(self) -> None:
        """All checkpoints of which the coordinator was told become durable, in order."""
        while self.unwritten:
            self.handle(self.unwritten.pop(0))

    def _delta(self, c: CommitRound, after: CheckpointRecord) -> WeightsDelta | None:
        if not self.delta_bytes:
            return None
        before = self.ledger.checkpoints[c.task_id, c.round].weights
        encoded = BlobRef(digest=blob(f"delta {c.task_id}/{c.round + 1}").digest, size_bytes=self.delta_bytes)
        codec = self.ledger.tasks[c.task_id].spec.recipe.weights_codec
        return WeightsDelta(base=before.digest, digest=after.weights.digest, codec=codec, blob=encoded)

    def _deliver(self, command: Send | DropClient) -> None:
        volunteer = next(v for v in self.volunteers.values() if f"id-{v.name}" == command.client_id)
        if not volunteer.online or volunteer.incarnation != command.incarnation:
            return
        if isinstance(command, DropClient):
            volunteer.online = False
            return
        message = command.message
        volunteer.messages.append(message)
        match message.type:
            case "assign":
                volunteer.held.append(message)
            case "ack":
                volunteer.outbox.pop(message.assignment_id, None)
            case "cancel":
                volunteer.outbox.pop(message.assignment_id, None)
                volunteer.held = deque(a for a in volunteer.held if a.assignment_id != message.assignment_id)
                self._ready(volunteer)

    # what the world does

    def submit(self, task: TaskSpec, task_id: str = "t1", start: CheckpointRecord | None = None) -> str:
        self.handle(TaskSubmitted(task_id, task, start))
        return task_id

    def join(self, volunteer: Volunteer | str) -> Volunteer:
        if isinstance(volunteer, str):
            volunteer = self.volunteers.get(volunteer) or Volunteer(volunteer)
        self.volunteers[volunteer.name] = volunteer
        self._incarnation += 1
        volunteer.incarnation, volunteer.online = self._incarnation, True
        self.handle(ClientConnected(volunteer.hello(), "hash", volunteer.incarnation))
        for assign, loss, seconds in list(volunteer.outbox.values()):
            self.handle(self.result(volunteer, assign, loss, seconds))
        self._ready(volunteer)
        return volunteer

    def _ready(self, v: Volunteer) -> None:
        self.handle(ClientReady(f"id-{v.name}", v.incarnation, v.slots - len(v.held)))

    def leave(self, v: Volunteer, reason: str = "gone", crashed: bool = True) -> None:
        """The connection ends; a crash forgets what the client was working on, a cut does not."""
        v.online = False
        if crashed:
            v.held.clear()
        self.handle(ClientLost(f"id-{v.name}", v.incarnation, reason))

    def accept(self, v: Volunteer, assign: Assign) -> None:
        self.handle(AssignmentAccepted(f"id-{v.name}", v.incarnation, assign.assignment_id, assign.fence))

    def result(self, v: Volunteer, assign: Assign, loss: float = 1.0, seconds: float = 1.0) -> ResultArrived:
        update = BlobRef(digest=digest_bytes(assign.assignment_id.encode()), size_bytes=3, inline=b"abc")
        return ResultArrived(
            client_id=f"id-{v.name}",
            incarnation=v.incarnation,
            assignment_id=assign.assignment_id,
            fence=assign.fence,
            samples=assign.samples,
            metrics={"loss": loss},
            update=update if assign.kind is Kind.TRAIN else None,
            output=update.bare() if assign.kind is Kind.MAP else None,
            compute_seconds=seconds,
            flops_per_sample=v.flops_per_sample,
            artefacts=v.leaves if assign.kind is Kind.EPOCH_END else (),
        )

    def deliver(self, v: Volunteer, loss: float = 1.0, seconds: float = 1.0) -> Assign:
        """The volunteer does its oldest assignment."""
        assign = v.held.popleft()
        v.outbox[assign.assignment_id] = (assign, loss, seconds)
        self.accept(v, assign)
        self.handle(self.result(v, assign, loss, seconds))
        if v.online:
            self._ready(v)
        return assign

    def compute(self, v: Volunteer, loss: float = 1.0, seconds: float = 1.0) -> Assign:
        """The volunteer of a pipelined task computes its oldest assignment and wants another; ``upload`` delivers."""
        assign = v.held.popleft()
        v.outbox[assign.assignment_id] = (assign, loss, seconds)
        self.accept(v, assign)
        self._ready(v)
        return assign

    def upload(self, v: Volunteer, assign: Assign) -> None:
        """The result of ``compute`` arrives."""
        self.handle(self.result(v, assign))

    def fail(
        self,
        v: Volunteer,
        scope: Scope = Scope.ELSEWHERE,
        message: str = "boom",
        traceback: str | None = None,
        code: str = "executor_error",
        failed_step: BlobRef | None = None,
    ) -> Assign:
        assign = v.held.popleft()
        here = (f"id-{v.name}", v.incarnation, assign.assignment_id, assign.fence)
        said = {"code": code, "message": message, "scope": scope, "traceback": traceback}
        self.handle(AssignmentFailed(*here, **said, failed_step=failed_step))  # type: ignore[arg-type]  # its fields
        self._ready(v)
        return assign

    def tick(self, seconds: float = 0.5) -> None:
        self.now += seconds
        self.handle(Tick())

    def restart(self) -> None:
        """The server dies and starts again from what was durable; all connections are gone."""
        for volunteer in self.volunteers.values():
            volunteer.online = False
        self.open.clear()
        self.pending_commits.clear()
        self.unwritten.clear()
        self.coordinator = self._start(self.ledger.snapshot())
        self.handle(Restored())

    def run(self, steps: int = 10_000) -> None:
        """Let everybody work, in a seeded order, until no online volunteer holds anything."""
        for _ in range(steps):
            busy = [v for v in self.volunteers.values() if v.online and v.held]
            if not busy:
                return
            self.deliver(self.rng.choice(busy))
        raise AssertionError("the farm does not come to rest")

    def task(self, task_id: str = "t1") -> TaskRecord:
        return self.ledger.tasks[task_id]

    def view(self, task_id: str = "t1"):
        if not self.coordinator.holds(task_id):
            return self.coordinator.ended_view(self.ledger.tasks[task_id])
        return self.coordinator.task_view(task_id, self.now)
