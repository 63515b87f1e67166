"""What the coordinator holds in memory: tasks with their open rounds, and clients with what they hold.

These are the only mutable objects of the core; the records inside them are immutable and are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from coordinator.breaker import Breaker
from coordinator.credit import FlopFigures
from coordinator.data_parts import take_of_parts
from coordinator.durability import Volatile
from coordinator.epoch import epoch_order, in_stretches, take
from coordinator.evidence import Evidence
from coordinator.in_flight import Home, Lease, StepParts, TaskLeases
from coordinator.lifecycle import ENDED, TaskState
from coordinator.narrowing import Suspects
from coordinator.planning import Line
from coordinator.policies import Policy, policy_of
from coordinator.records import CheckpointRecord, ClientRecord, RoundRecord, SampleRange, TaskRecord
from coordinator.secure_sum import SecureRound
from coordinator.stopping import epoch_end_is_due
from coordinator.throughput import DecayingSum, MovingAverage
from protocol.assignments import Kind
from protocol.environments import NO_ENVIRONMENTS, Environments
from protocol.recipe import DataOrder
from protocol.resources import LinkFigures, Load
from protocol.retry import RetryPolicy
from protocol.tasks import Shard, Split, TaskBrief, WeightsDelta
from protocol.wanted_work import ANY_WORK, WantedWork


@dataclass(slots=True)
class Cooldown:
    """A client is not offered a task before ``until``."""

    until: float
    reason: str


_NEWS: Final = frozenset(
    {"online", "slots", "paused", "throttled", "draining", "freed_at", "warms_up", "environments", "wanted"}
)


@dataclass(slots=True)
class ClientState:
    """One known client. ``slots``: how many more assignments it can take now.

    Only the ``LeaseBook`` changes ``slots``, ``freed_at``, ``held`` and ``dormant``.
    """

    record: ClientRecord
    client_id: str = field(init=False)
    """The client's lasting identity."""
    incarnation: int = field(init=False)
    """The number of the present (or last) connection."""
    online: bool = False
    slots: int = 0
    load: Load = field(default_factory=Load)
    link: LinkFigures = field(default_factory=LinkFigures)
    """What it measured lately of its link to the farm."""
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
    held: dict[str, Lease] = field(default_factory=dict)
    """What it works on, by assignment id."""
    dormant: dict[str, Lease] = field(default_factory=dict)
    """What it may come back with, though others may do it too."""
    speeds: dict[str, MovingAverage] = field(default_factory=dict)
    """Measured samples per second, by task id."""
    cached: set[str] = field(default_factory=set)
    """Digests that the client is known to hold."""
    codecs: frozenset[str] = frozenset()
    """What it can encode and decode besides ``none``."""
    features: frozenset[str] = frozenset()
    """What it can do that older clients can't, as its hello says."""
    environments: Environments = NO_ENVIRONMENTS
    """Which task environments it has, and whether it installs others."""
    wanted: WantedWork = ANY_WORK
    """Which work its owner wants done, as this connection says."""
    versions: dict[str, str] = field(default_factory=dict)
    """Digest of the newest weights that it is known to hold, by task id."""
    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    """By task id."""
    failures: dict[str, int] = field(default_factory=dict)
    """Consecutive failures, by task id."""
    lacks: dict[str, str] = field(default_factory=dict)
    """What it has not installed, by the id of the task that needs it; another connection may have it."""
    refuses: dict[str, str] = field(default_factory=dict)
    """Why its owner's settings keep it off, by the id of the task; another connection may have others."""
    breaker: Breaker = field(default_factory=Breaker)
    place: int = 0
    """Its place in the order in which clients first came."""
    stints: dict[str, float] = field(default_factory=dict)
    """Since when it serves which task, by task id: one for each of its slots (see ``coordinator.stints``)."""
    recent: tuple[str, ...] = ()
    """The tasks that it worked on last, the newest first: it may have warm executors for them."""
    serves: set[str] = field(default_factory=set)
    """Tasks of which it is a participant."""
    watch: Callable[[ClientState], None] | None = None
    """Called at each change that decides who may be served."""

    def __post_init__(self) -> None:
        """Have at hand what is looked up most often, and never changes."""
        self.client_id, self.incarnation = self.record.client_id, self.record.incarnation

    def __setattr__(self, name: str, value: object) -> None:
        """Set a field; the pools are updated with what concerns them, so that no rule can forget it."""
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

    def forget(self, task_id: str) -> None:
        """Drop all that was learned of it by working on a task."""
        self.serves.discard(task_id)
        for learned in (self.speeds, self.versions, self.cooldowns, self.failures, self.lacks, self.refuses):
            learned.pop(task_id, None)


class StepPhase(StrEnum):
    """Where a step is: its parts are out, or its aggregate is being made durable."""

    COLLECT = "collect"
    REVEAL = "reveal"
    """Of a secure sum: it has all of its updates, and waits for what unmasks them."""
    COMMIT = "commit"


@dataclass(slots=True)
class Step:
    """An open round (kind train), or a look at a committed version: its evaluation, or its epoch's end.

    ``folded_to`` is the position up to which the updates were given to the accumulator.
    """

    kind: Kind
    number: int
    attempt: int
    epoch: int
    opened_at: float
    parts: StepParts
    """Who has which part of it."""
    policy: Policy
    """What it waits for, and what it counts."""
    round: RoundRecord | None = None
    next_cursor: int = 0
    phase: StepPhase = StepPhase.COLLECT
    upcoming: tuple[int, Line] | None = None
    """What the round after it is likely to be, and the cursor where that begins."""
    folded_to: int = 0
    collect_since: float = 0.0
    """When clients began to work on it (again): the longest time counts from here."""
    late_at_open: tuple[SampleRange, ...] = ()
    """Samples that late assignments of earlier rounds had when this one opened."""
    carried: tuple[SampleRange, ...] = ()
    """Samples owed since earlier rounds that this one has no part in."""
    owed: tuple[SampleRange, ...] = ()
    """Samples that the next round inherits, known when this one commits."""
    secure: SecureRound | None = None
    """How far it is where its sum alone may be learned."""

    @property
    def samples(self) -> int:
        """Count the samples of its own parts."""
        return self.parts.samples


@dataclass(slots=True)
class Answered:
    """A task as the last turn left it, whose answer is being carried out: where a turn that breaks goes back to.

    What was in flight then knows the ``LeaseBook``.
    """

    record: TaskRecord
    checkpoint: CheckpointRecord
    volatile: Volatile | None = None
    round: RoundRecord | None = None
    """Its round that is open."""


@dataclass(slots=True)
class TaskRun:
    """A task, its newest checkpoint, and the step that is open, if any."""

    record: TaskRecord
    checkpoint: CheckpointRecord
    brief: TaskBrief
    task_id: str = field(init=False)
    step: Step | None = None
    evaluate_next: bool = False
    attempt: int = 0
    """Numbers the openings of rounds, so that an answer about an abandoned one is recognised."""
    speed: MovingAverage = field(default_factory=MovingAverage)
    evidence: Evidence = field(default_factory=Evidence)
    suspects: Suspects = field(default_factory=Suspects)
    """What of a map ended executors."""
    """What clients said against the task since its last commit."""
    server_faults: int = 0
    """How often in a row the server itself could not go on with it; these cost it no retries."""
    desertions: int = 0
    """How often in a row all of its clients left, with no result in between."""
    deltas: list[WeightsDelta] = field(default_factory=list)
    """How the newest versions follow from each other, the last one being the present version's."""
    volatile: Volatile | None = None
    """Its versions that are not durable yet."""
    spent: DecayingSum = field(default_factory=lambda: DecayingSum(600.0))
    """Client-seconds that it had of late."""
    reserves: tuple[str, ...] = ()
    """Clients that are kept free until there are as many as it needs."""
    look_again: float = 0.0
    """Not before this, if nothing happens that concerns it, is it worth while to look for clients again."""
    participants: set[str] = field(default_factory=set)
    """Clients that may hold an executor of this task."""
    leases: TaskLeases = field(default_factory=TaskLeases)
    """Its assignments in flight."""
    flops: FlopFigures = field(default_factory=FlopFigures)
    """What clients count for a sample."""
    output_bytes: MovingAverage = field(default_factory=MovingAverage)
    """What an item's output takes, of a map."""
    failed_lines: set[str] = field(default_factory=set)
    """Where its code failed in the steps that are kept."""
    answered: Answered = field(init=False)
    _order: tuple[int, Sequence[Shard]] | None = None
    _shards: dict[str, list[int]] | None = None
    _policies: dict[Kind, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A new task goes back to where it began."""
        self.task_id = self.record.task_id
        self.answered = Answered(self.record, self.checkpoint)

    def join(self, client: ClientState) -> None:
        """Note that a client may hold an executor of this task from now on."""
        self.participants.add(client.client_id)
        client.serves.add(self.task_id)

    def settle(self) -> None:
        """End a turn: what the task is now is what a turn that breaks goes back to."""
        opened = None if self.step is None else self.step.round
        self.answered = Answered(self.record, self.checkpoint, self.volatile, opened)

    @property
    def waits(self) -> bool:
        """Whether it has no clients and no step, and knows it."""
        return self.step is None and self.record.state is TaskState.PENDING

    @property
    def looks_first(self) -> bool:
        """Whether its version is to be evaluated, or its code shown that an epoch ended, before it is trained on."""
        return self.evaluate_next or epoch_end_is_due(self.record)

    @property
    def next_kind(self) -> Kind:
        """What clients are given of it now: parts of its open step, else of the one that opens next."""
        if self.step is not None:
            return self.step.kind
        if self.record.spec.map is not None:
            return Kind.MAP
        if self.evaluate_next:
            return Kind.EVALUATE
        return Kind.EPOCH_END if self.looks_first else Kind.TRAIN

    @property
    def is_at_rest(self) -> bool:
        """Whether it has ended, and nothing of it is in flight: no assignment, no round, no commit."""
        has_ended = self.record.state in ENDED
        return has_ended and self.step is None and self.volatile is None and next(iter(self.leases), None) is None

    @property
    def late(self) -> StepParts:
        """What missed its own round, and is counted by another one (recipes with ``max_staleness``)."""
        return self.leases.late

    @property
    def ahead(self) -> StepParts:
        """What clients do ahead of the round that opens next (recipes with ``pipeline``)."""
        return self.leases.of(self.next_round)

    @property
    def next_round(self) -> Home:
        """The round that opens next."""
        home = Home(Kind.TRAIN, self.record.version)
        is_open = self.step is not None and self.step.parts.home == home
        return Home(Kind.TRAIN, self.record.version + is_open)

    def policy(self, kind: Kind) -> Policy:
        """Return how steps of this kind collect."""
        found = self._policies.get(kind)
        if found is None:
            found = self._policies[kind] = policy_of(self.record.spec.recipe, kind)
        return found

    def order(self) -> Sequence[Shard]:
        """Return the training shards in the order of the task's present epoch."""
        if self._order is None or self._order[0] != self.record.epoch:
            shards: Sequence[Shard] = self.record.spec.dataset.of(Split.TRAIN)
            if self.record.spec.recipe.order is not DataOrder.SEQUENTIAL:
                shards = epoch_order(shards, self.record.spec.recipe.seed, self.record.epoch)
            self._order = (self.record.epoch, shards)
        return self._order[1]

    def take(self, cursor: int, count: int, stripe_shards: int) -> tuple[SampleRange, ...]:
        """Return samples ``cursor`` to ``cursor + count`` of the present epoch, fewer at its end.

        Those that are read in order come stretch by stretch, those of a split part by part.
        """
        recipe, dataset = self.record.spec.recipe, self.record.spec.dataset
        if dataset.parts:
            return take_of_parts(dataset, self.order(), cursor, count, stripe_shards)
        if recipe.order is not DataOrder.SEQUENTIAL:
            return take(self.order(), cursor, count, stripe_shards)
        ranges = take(self.order(), cursor, count, recipe.min_clients)
        return tuple(one for stretch in in_stretches(ranges, recipe.min_clients) for one in stretch)

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
