"""The farm's facts, as immutable records. ``storage`` keeps them; only the coordinator makes new ones.

Times are seconds on the server's clock, which starts at Unix time and never jumps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, dataclass_transform

from coordinator.lifecycle import AssignmentState, TaskState
from protocol.assignments import Kind
from protocol.resources import Resources
from protocol.sandbox import Sandbox
from protocol.tasks import BlobRef, TaskSpec

_C = TypeVar("_C")


@dataclass_transform(frozen_default=True)
def light_record(cls: type[_C]) -> type[_C]:
    """Make a frozen dataclass, held to that by the type checker alone: for what is made once for each offer.

    One that is frozen at run time takes 2 us more to make, with 22 fields.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


@light_record
class SampleRange:
    """Rows ``start`` to ``stop`` of shard number ``shard``, in the epoch's order of that shard."""

    shard: int
    start: int
    stop: int

    @property
    def samples(self) -> int:
        """Count the samples."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A submitted task. Key: ``task_id``.

    ``version`` counts committed rounds, so it is also the number of the next one; ``epoch`` and ``cursor``
    (samples consumed in that epoch) say where the next round's samples begin; ``leftover`` are samples of this
    epoch before the cursor that a round committed without, owed to the next one.
    """

    task_id: str
    spec: TaskSpec
    state: TaskState
    created_at: float
    reason: str = ""
    error: str | None = None
    version: int = 0
    epoch: int = 0
    cursor: int = 0
    leftover: tuple[SampleRange, ...] = ()
    retries: int = 0
    not_before: float = 0.0
    """Backoff: no round opens before this."""
    served_at: float = 0.0
    """When a round last opened: ageing counts from here."""
    started_at: float | None = None
    finished_at: float | None = None
    samples_done: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    priority_set: int | None = None
    """What a person set since it was submitted, instead of the specification's priority."""
    best_value: float | None = None
    """The best value so far of the metric that ``keep_best`` names."""
    stale_evaluations: int = 0
    """How many evaluations there were since that one."""
    stopped: str | None = None
    """Why it ends before its recipe does, once that is so."""
    epochs_ended: int = 0
    """After how many epochs its code's ``on_epoch_end`` was run, or given up."""
    epoch_end_error: str | None = None
    """Why it was given up the last time."""
    artefact_files: int = 0
    artefact_bytes: int = 0
    items_failed: int = 0
    """Items of a map that have an error in the place of an output, or none."""

    @property
    def priority(self) -> int:
        """Return the priority that holds, from 0 to 9."""
        return self.spec.priority if self.priority_set is None else self.priority_set


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A volunteer machine, known by an identity that outlives its connections. Key: ``client_id``."""

    client_id: str
    name: str
    secret_hash: str
    first_seen: float
    last_seen: float
    incarnation: int = 0
    resources: Resources = field(default_factory=Resources)
    tags: tuple[str, ...] = ()
    delivered: int = 0
    failed: int = 0
    sandbox: Sandbox | None = None
    """As its last hello told; None of a client that is older than sandboxes."""
    team: str = ""
    """For whom it computes, as its last hello told; empty if for no team."""


class RoundState(StrEnum):
    """Where a round is in its life."""

    OPEN = "open"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One global step. Key: (``task_id``, ``number``); an abandoned round's number is opened again."""

    task_id: str
    number: int
    state: RoundState
    attempt: int
    epoch: int
    cursor: int
    samples: int
    opened_at: float
    clients: int = 0
    committed_at: float | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@light_record
class AssignmentRecord:
    """One client's part of one round. Key: ``assignment_id``.

    ``position`` is the place of its first sample in the round: updates are folded in this order. ``counted`` is
    true once a committed round contains it, and ``counted_in`` is that round: a late update's is higher than its own.
    ``fence`` is the lease's token: higher for each later lease.
    """

    assignment_id: str
    task_id: str
    round: int
    attempt: int
    kind: Kind
    epoch: int
    client_id: str
    incarnation: int
    fence: int
    state: AssignmentState
    ranges: tuple[SampleRange, ...]
    position: int
    samples: int
    offered_at: float
    expires_at: float
    delivered_at: float | None = None
    counted: bool = False
    counted_in: int | None = None
    update: BlobRef | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    team: str = ""
    """That of its client when it delivered."""
    flops_per_sample: int = 0
    """As the client said; from when it is counted, what it is credited with. 0: not known."""


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """All that resumes a task exactly after round ``round`` - 1. Key: (``task_id``, ``round``).

    ``round`` is the version of the weights: 0 is the initial weights, n those after n committed rounds.
    ``epoch`` and ``cursor`` are where round number ``round`` begins.
    """

    task_id: str
    round: int
    epoch: int
    cursor: int
    weights: BlobRef
    optimizer: BlobRef | None
    manifest: BlobRef | None
    created_at: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    leftover: tuple[SampleRange, ...] = ()
    inner_state: BlobRef | None = None
    """What the clients' optimizers begin the round with, where the recipe has it carried."""

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """What the checkpoint consists of, its manifest included."""
        refs = (self.weights, self.optimizer, self.inner_state, self.manifest)
        return tuple(ref for ref in refs if ref is not None)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened, for people and for audits. Appended, numbered by the ledger."""

    at: float
    kind: str
    message: str
    task_id: str | None = None
    client_id: str | None = None
    round: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One measured value. ``source``: train, eval or client. Appended, numbered by the ledger."""

    at: float
    task_id: str
    round: int
    step: int
    name: str
    value: float
    source: str
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of the researcher's output. Appended, numbered by the ledger."""

    at: float
    task_id: str
    client_id: str
    client_name: str
    round: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class FailedStepRecord:
    """The state and the batch of a step in which a task's code failed: ``line`` says where. Kept with the task."""

    task_id: str
    line: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ArtefactRecord:
    """A file that a task's ``on_epoch_end`` left after ``epoch``, which counts from 0. Kept with the task."""

    task_id: str
    epoch: int
    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """The outputs of a map's items ``position`` to ``position`` + ``samples``, in one blob. Kept with the task."""

    task_id: str
    position: int
    samples: int
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FailedItemRecord:
    """An item of a map that has no output, for it ends executors. Key: ``task_id``, ``position``. Kept with the task.

    ``error``: how the last one of them ended; ``clients``: the names of those on which it did.
    """

    task_id: str
    position: int
    error: str
    clients: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemovedClient:
    """Saved instead of a ``ClientRecord``: what is recorded of the client goes, but for what it did for tasks."""

    client_id: str


@dataclass(frozen=True, slots=True)
class CreditEntry:
    """What a counted assignment adds to its client's credit, or takes back. Key: task, client, team and day.

    Added to what the ledger has under its key, and kept beyond its task and its client. ``day`` counts from 1970 (UTC).
    ``measured_samples``: those of which the FLOPs are known, which are ``gigaflops`` * 10^9 + ``flops``: a
    column holds 64 bits, and an exact sum of a year's FLOPs does not fit.
    """

    task_id: str
    client_id: str
    team: str
    day: int
    assignments: int
    samples: int
    measured_samples: int
    gigaflops: int
    flops: int

    @property
    def all_flops(self) -> int:
        """Count its FLOPs."""
        return self.gigaflops * 10**9 + self.flops


@dataclass(frozen=True, slots=True)
class ClientCredit:
    """All credit of one client, whatever it was for."""

    client_id: str
    samples: int = 0
    flops: int = 0

    def with_entry(self, entry: CreditEntry) -> ClientCredit:
        """Return it with one entry more."""
        return ClientCredit(self.client_id, self.samples + entry.samples, self.flops + entry.all_flops)


Record = (
    TaskRecord
    | ClientRecord
    | RoundRecord
    | AssignmentRecord
    | CheckpointRecord
    | FailedStepRecord
    | ArtefactRecord
    | OutputRecord
    | FailedItemRecord
    | RemovedClient
)
"""A record with a key: saving it again replaces it."""
Entry = EventRecord | MetricRecord | LogRecord | CreditEntry
"""A record that is saved once: it is appended, or added to the sum that is kept."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What survives a restart, as the ledger gives it back.

    ``tasks``: those that have not ended. ``rounds`` and ``assignments``: only open and held ones. ``checkpoints``:
    the newest of each of these tasks up to its version (a later one was damaged, and the task fell back).
    ``failed_steps``: those of these tasks.
    """

    tasks: tuple[TaskRecord, ...] = ()
    clients: tuple[ClientRecord, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()
    assignments: tuple[AssignmentRecord, ...] = ()
    checkpoints: tuple[CheckpointRecord, ...] = ()
    failed_steps: tuple[FailedStepRecord, ...] = ()
    last_fence: int = 0
    """The highest of all assignments ever, held or not."""
    credits: tuple[ClientCredit, ...] = ()
    """Of all clients, removed ones included."""
    newest_at: float = 0.0
    """The latest submission or end of any task, ended ones included."""
