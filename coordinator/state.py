"""What the coordinator holds in memory: tasks with their open rounds, and clients with what they hold.

These are the only mutable objects of the core; the records inside them are immutable and are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Final

from coordinator.breaker import Breaker
from coordinator.durability import Volatile
from coordinator.epoch import epoch_order
from coordinator.evidence import Evidence
from coordinator.lifecycle import HELD, AssignmentState, TaskState
from coordinator.planning import Line
from coordinator.records import (
    AssignmentRecord,
    CheckpointRecord,
    ClientRecord,
    RoundRecord,
    RoundState,
    SampleRange,
    TaskRecord,
)
from coordinator.throughput import DecayingSum, MovingAverage
from protocol.messages import AssignmentProgress, Kind, TaskBrief
from protocol.resources import Load
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef, Shard, Split, WeightsDelta


@dataclass(slots=True)
class Cooldown:
    """A client is not offered a task before ``until``."""

    until: float
    reason: str


_NEWS: Final = frozenset({"online", "slots", "paused", "throttled", "draining", "freed_at", "warms_up"})


@dataclass(slots=True)
class ClientState:
    """One known client. ``slots``: how many more assignments it can take now."""

    record: ClientRecord
    online: bool = False
    slots: int = 0
    load: Load = field(default_factory=Load)
    paused: str | None = None
    throttled: bool = False
    """Whether it sends more than a connection may."""
    draining: bool = False
    offline_reason: str = "not connected since the server started"
    connected_at: float = 0.0
    last_beat: float = 0.0
    freed_at: float = 0.0
    """When it connected, or when its last assignment ended."""
    warms_up: bool = False
    """Whether it says that it can take nothing yet, although it holds nothing."""
    held: set[str] = field(default_factory=set)
    speeds: dict[str, MovingAverage] = field(default_factory=dict)
    """Measured samples per second, by task id."""
    cached: set[str] = field(default_factory=set)
    """Digests that the client is known to hold."""
    codecs: frozenset[str] = frozenset()
    """What it can encode and decode besides ``none``."""
    features: frozenset[str] = frozenset()
    """What it can do that older clients can't, as its hello says."""
    versions: dict[str, str] = field(default_factory=dict)
    """Digest of the newest weights that it is known to hold, by task id."""
    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    """By task id."""
    failures: dict[str, int] = field(default_factory=dict)
    """Consecutive failures, by task id."""
    lacks: dict[str, str] = field(default_factory=dict)
    """What it has not installed, by the id of the task that needs it; another connection may have it."""
    breaker: Breaker = field(default_factory=Breaker)
    place: int = 0
    """Its place in the order in which clients first came."""
    stints: dict[str, float] = field(default_factory=dict)
    """Since when it serves which task, by task id: one for each of its slots (see ``coordinator.stints``)."""
    recent: tuple[str, ...] = ()
    """The tasks that it worked on last, the newest first: it may have warm executors for them."""
    dormant: set[str] = field(default_factory=set)
    """Tasks of which it may come back with something that it held."""
    serves: set[str] = field(default_factory=set)
    """Tasks of which it is a participant."""
    watch: Callable[[ClientState], None] | None = None
    """Told of each change that decides who may be served."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field; the pools hear of what concerns them, so that no rule can forget to say it."""
        is_news = name in _NEWS and (name == "freed_at" or getattr(self, name, None) != value)
        object.__setattr__(self, name, value)
        if is_news and (watch := getattr(self, "watch", None)) is not None:
            watch(self)

    @property
    def rests(self) -> bool:
        """Whether it wants no work now, or gets none."""
        return self.draining or self.throttled or self.paused is not None

    def back_off(self, task_id: str, why: str, policy: RetryPolicy, now: float) -> None:
        """Count a failure on a task, and keep the client off it for longer after each in a row."""
        count = self.failures[task_id] = self.failures.get(task_id, 0) + 1
        self.cooldowns[task_id] = Cooldown(now + policy.bound_seconds(count), f"failed {count} times, last: {why}")

    @property
    def client_id(self) -> str:
        """The client's lasting identity."""
        return self.record.client_id

    @property
    def incarnation(self) -> int:
        """The number of the present (or last) connection."""
        return self.record.incarnation


@dataclass(frozen=True, slots=True)
class Part:
    """A consecutive part of a round (or of an evaluation) that nobody holds."""

    position: int
    ranges: tuple[SampleRange, ...]
    samples: int
    reserved_until: float = 0.0
    """Before this it is kept for a client that held it and may come back."""


@dataclass(slots=True)
class Lease:
    """A held assignment: what renews and what ends it."""

    record: AssignmentRecord
    progress: AssignmentProgress | None = None
    deadline: float = inf
    """The latest end, from the client's measured speed, whatever progress it reports."""
    is_measured: bool = False
    """Whether that speed is known."""
    began_at: float = 0.0
    """When this client was given it, or came back with it."""
    grown_at: float = -inf
    """When a report last said more than those before it."""
    computing_at: float = inf
    """When it was first said to be computing."""
    uploading_at: float = inf
    """When it was first said to be computed."""


@dataclass(frozen=True, slots=True)
class LateResult:
    """The result of an assignment whose round was committed without it."""

    record: AssignmentRecord
    update: BlobRef


class StepPhase(StrEnum):
    """Where a step is: its parts are out, or its aggregate is being made durable."""

    COLLECT = "collect"
    COMMIT = "commit"


@dataclass(slots=True)
class Step:
    """An open round (kind train), or the evaluation of a committed version (kind evaluate).

    ``folded_to`` is the position up to which the updates were given to the accumulator.
    """

    kind: Kind
    number: int
    attempt: int
    epoch: int
    samples: int
    opened_at: float
    round: RoundRecord | None = None
    next_cursor: int = 0
    phase: StepPhase = StepPhase.COLLECT
    waiting: list[Part] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)
    dormant: dict[str, AssignmentRecord] = field(default_factory=dict)
    """Held by clients whose connection ended; whoever delivers first, they or their replacement, is counted."""
    delivered: list[AssignmentRecord] = field(default_factory=list)
    updates: dict[str, BlobRef] = field(default_factory=dict)
    """Updates that wait for their turn to be folded, by assignment id; small ones with their bytes."""
    unfolded: dict[int, AssignmentRecord] = field(default_factory=dict)
    """The delivered assignments of these updates, by position."""
    upcoming: tuple[int, Line] | None = None
    """What the round after it is likely to be, and the cursor where that begins."""
    own_samples: int = 0
    """Samples of the round's own parts that arrived."""
    folded_to: int = 0
    collect_since: float = 0.0
    """When clients began to work on it (again): the longest time counts from here."""
    late_at_open: tuple[SampleRange, ...] = ()
    """Samples that late assignments of earlier rounds had when this one opened."""
    carried: tuple[SampleRange, ...] = ()
    """Samples owed since earlier rounds that this one has no part in."""
    owed: tuple[SampleRange, ...] = ()
    """Samples that the next round inherits, known when this one commits."""
    scales: dict[str, float] = field(default_factory=dict)
    """Factors of stale updates' weights, by assignment id."""

    def own_records(self) -> Iterator[AssignmentRecord]:
        """Iterate over the held and the delivered assignments of the round's own parts."""
        yield from (lease.record for lease in self.leases.values())
        yield from (record for record in self.delivered if record.position < self.samples)

    @property
    def delivered_samples(self) -> int:
        """Count the samples of the updates that arrived, stale ones included."""
        return sum(a.samples for a in self.delivered)

    def take_in(self, record: AssignmentRecord, update: BlobRef | None) -> None:
        """Add a delivered assignment, and its update, which waits for its turn to be folded."""
        self.delivered.append(record)
        if record.position < self.samples:
            self.own_samples += record.samples
        if update is not None:
            self.updates[record.assignment_id] = update
            self.unfolded[record.position] = record


@dataclass(slots=True)
class Answered:
    """A task as the last turn left it, whose answer is being carried out: where a turn that breaks goes back to.

    ``open``: its rounds that are open and its assignments that are not settled, as the ledger has them, by key.
    """

    record: TaskRecord
    checkpoint: CheckpointRecord
    volatile: Volatile | None = None
    step: Step | None = None
    open: dict[object, RoundRecord | AssignmentRecord] = field(default_factory=dict)

    def take_in(self, record: object) -> None:
        """Note what a turn saves of the task."""
        if isinstance(record, AssignmentRecord):
            delivered = record.state is AssignmentState.DELIVERED and not record.counted
            self._keep(record.assignment_id, record, is_open=delivered or record.state in HELD)
        elif isinstance(record, RoundRecord):
            self._keep(record.number, record, is_open=record.state is RoundState.OPEN)

    def _keep(self, key: object, record: RoundRecord | AssignmentRecord, *, is_open: bool) -> None:
        if is_open:
            self.open[key] = record
        else:
            self.open.pop(key, None)


@dataclass(slots=True)
class TaskRun:
    """A task, its newest checkpoint, and the step that is open, if any."""

    record: TaskRecord
    checkpoint: CheckpointRecord
    brief: TaskBrief
    step: Step | None = None
    evaluate_next: bool = False
    attempt: int = 0
    """Numbers the openings of rounds, so that an answer about an abandoned one is recognised."""
    speed: MovingAverage = field(default_factory=MovingAverage)
    evidence: Evidence = field(default_factory=Evidence)
    """What clients said against the task since its last commit."""
    server_faults: int = 0
    """How often in a row the server itself could not go on with it; these cost it no retries."""
    desertions: int = 0
    """How often in a row all of its clients left, with no result in between."""
    late: dict[str, Lease] = field(default_factory=dict)
    """Held assignments of committed rounds, by assignment id (recipes with ``max_staleness``)."""
    late_results: list[LateResult] = field(default_factory=list)
    """Their results, until a round contains them."""
    ahead: dict[str, Lease] = field(default_factory=dict)
    """Parts of the next round that clients work on already, by assignment id (recipes with ``pipeline``)."""
    ahead_results: dict[str, LateResult] = field(default_factory=dict)
    """Their results, until that round opens."""
    deltas: list[WeightsDelta] = field(default_factory=list)
    """How the newest versions follow from each other, the last one being the present version's."""
    volatile: Volatile | None = None
    """What is committed in memory only (recipes with ``durable_every``)."""
    durable_at: float = 0.0
    """When its last durable commit was."""
    spent: DecayingSum = field(default_factory=lambda: DecayingSum(600.0))
    """Client-seconds that it had of late."""
    reserves: tuple[str, ...] = ()
    """Clients that are kept free until there are as many as it needs."""
    look_again: float = 0.0
    """Not before this, if nothing happens that concerns it, is it worth while to look for clients again."""
    participants: set[str] = field(default_factory=set)
    """Clients that may hold an executor of this task."""
    in_flight: set[str] = field(default_factory=set)
    """Ids of its assignments that clients may still say something about."""
    answered: Answered = field(init=False)
    _order: tuple[int, list[Shard]] | None = None
    _shards: dict[str, list[int]] | None = None

    def __post_init__(self) -> None:
        """A new task goes back to where it began."""
        self.answered = Answered(self.record, self.checkpoint)

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.record.task_id

    def join(self, client: ClientState) -> None:
        """Note that a client may hold an executor of this task from now on."""
        self.participants.add(client.client_id)
        client.serves.add(self.task_id)

    def delivered_ids(self) -> set[str]:
        """Return the ids of the assignments whose results are here and in no committed round."""
        records = [*(late.record for late in (*self.late_results, *self.ahead_results.values()))]
        return {r.assignment_id for r in (*records, *(self.step.delivered if self.step else ()))}

    def unsettled(self) -> set[str]:
        """Return the ids of all assignments that are held, dormant, or delivered and not yet in a durable round."""
        ids = {*self.late, *self.ahead} | self.delivered_ids()
        if self.step is not None:
            ids |= {*self.step.leases, *self.step.dormant}
        if self.volatile is not None:
            ids |= {ack.assignment_id for _, ack in self.volatile.acks}
        return ids

    @property
    def waits(self) -> bool:
        """Whether it has no clients and no step, and knows it."""
        return self.step is None and self.record.state is TaskState.PENDING

    def ahead_records(self) -> list[AssignmentRecord]:
        """Return what is done ahead of the next round, delivered or not."""
        return [*(x.record for x in self.ahead.values()), *(x.record for x in self.ahead_results.values())]

    @property
    def ahead_samples(self) -> int:
        """Count the samples of the next round that are given out already."""
        return sum(record.samples for record in self.ahead_records())

    def order(self) -> Sequence[Shard]:
        """Return the training shards in the order of the task's present epoch."""
        if self._order is None or self._order[0] != self.record.epoch:
            spec = self.record.spec
            shards = epoch_order(spec.dataset.of(Split.TRAIN), spec.recipe.seed, self.record.epoch)
            self._order = (self.record.epoch, shards)
        return self._order[1]

    def shards_by_digest(self) -> Mapping[str, Sequence[int]]:
        """Return the indices of the shards that are blobs, by digest."""
        if self._shards is None:
            self._shards = {}
            for shard in self.record.spec.dataset.shards:
                if shard.blob is not None:
                    self._shards.setdefault(shard.blob.digest, []).append(shard.index)
        return self._shards

    def update(self, **changes: object) -> TaskRecord:
        """Replace fields of the record and return the new one."""
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]  # the caller names fields of TaskRecord
        return self.record
