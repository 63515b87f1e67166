"""The events that the coordinator handles. Each event is a fact; the coordinator decides what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coordinator.records import AssignmentRecord, CheckpointRecord, FailedStepRecord, TaskRecord
from protocol.artefacts import Artefact
from protocol.assignments import AssignmentProgress, RejectCode
from protocol.environments import Environments
from protocol.messages import Hello, Scope
from protocol.resources import Load
from protocol.secure_messages import PublicKeys, Revealed, SealedShare
from protocol.tasks import BlobRef, TaskSpec, WeightsDelta
from protocol.wanted_work import WantedWork


@dataclass(frozen=True, slots=True)
class TaskSubmitted:
    """A researcher submitted a task, and all blobs it names are in the store.

    ``start``: what it begins with where it goes on from another task's checkpoint (``coordinator.continuing``).
    """

    task_id: str
    spec: TaskSpec
    start: CheckpointRecord | None = None


class Action(StrEnum):
    """What a person may do with a task."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class TaskAction:
    """A person's request. Raises IllegalTransition out of ``handle`` where the state forbids it."""

    task_id: str
    action: Action
    by: str = ""


@dataclass(frozen=True, slots=True)
class TaskPrioritized:
    """A person gave a task another priority, from 0 to 9."""

    task_id: str
    priority: int


@dataclass(frozen=True, slots=True)
class ClientConnected:
    """A client sent its hello and proved its identity. ``incarnation`` is higher than any before it."""

    hello: Hello
    secret_hash: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class ClientLost:
    """A connection ended: closed, silent for too long, or replaced by a newer one."""

    client_id: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class IdentityShared:
    """Two machines use one client's identity, or seem to."""

    client_id: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class ClientReady:
    """The client can take ``slots`` more assignments.

    ``environments``: what it has of those, ``wanted``: which work its owner wants done, each where that is news.
    """

    client_id: str
    incarnation: int
    slots: int
    environments: Environments | None = None
    wanted: WantedWork | None = None


@dataclass(frozen=True, slots=True)
class ClientPaused:
    """The volunteer paused (or, with ``paused`` false, resumed) the machine."""

    client_id: str
    incarnation: int
    paused: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClientThrottled:
    """The client sends more than a connection may, and is read slowly; or no longer does."""

    client_id: str
    incarnation: int
    throttled: bool


@dataclass(frozen=True, slots=True)
class ClientDraining:
    """The client finishes what it holds and takes nothing more."""

    client_id: str
    incarnation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ClientBeat:
    """A heartbeat, or the progress part of a progress message."""

    client_id: str
    incarnation: int
    load: Load | None
    assignments: tuple[AssignmentProgress, ...] = ()


@dataclass(frozen=True, slots=True)
class AssignmentAccepted:
    """The client will do it."""

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    keys: PublicKeys | None = None
    """Its keys of the round, where that is a secure sum."""


@dataclass(frozen=True, slots=True)
class SharesSealed:
    """A client of a secure sum answers the list of keys: what it shares with each other one, whom ``point`` names."""

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    shares: tuple[SealedShare, ...]


@dataclass(frozen=True, slots=True)
class SharesRevealed:
    """A survivor of a secure sum reveals its part of what unmasks the sum."""

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    revealed: Revealed


@dataclass(frozen=True, slots=True)
class AssignmentRejected:
    """The client hands it back undone."""

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    code: RejectCode
    message: str


@dataclass(frozen=True, slots=True)
class AssignmentFailed:
    """It went wrong: on the client (an error message), or its update was unusable (found by the server).

    ``servers_fault``: the server lacked something to look at it with, which says nothing of client or task.
    """

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    code: str
    message: str
    scope: Scope
    traceback: str | None = None
    servers_fault: bool = False
    failed_step: BlobRef | None = None
    """What the client stored of the step in which the task's code failed; that the server has it was checked."""


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """An assignment's result, complete: its update is stored, hash-checked, in the task's layout, and finite."""

    client_id: str
    incarnation: int
    assignment_id: str
    fence: int
    samples: int
    metrics: Mapping[str, float]
    update: BlobRef | None
    compute_seconds: float
    flops_per_sample: int = 0
    """What the client counted for a sample; 0: not known."""
    artefacts: tuple[Artefact, ...] = ()
    """What it left of an epoch's end; that the server has these blobs, and their sizes, was checked."""
    output: BlobRef | None = None
    """The outputs of a part of a map: stored, and read once to see that there are as many as items."""


@dataclass(frozen=True, slots=True)
class RoundAggregated:
    """The answer to ``CommitRound``: the new version is in memory, clients can have it, and it will be written.

    ``delta``: how its weights follow from those before, stored as a blob, where the recipe has a ``weights_codec``.
    """

    task_id: str
    round: int
    attempt: int
    checkpoint: CheckpointRecord
    delta: WeightsDelta | None = None


@dataclass(frozen=True, slots=True)
class CheckpointDurable:
    """The version that a round's attempt made is on the disk. Versions before it may never be."""

    task_id: str
    attempt: int
    checkpoint: CheckpointRecord


@dataclass(frozen=True, slots=True)
class AggregationFailed:
    """``OpenRound``, ``Fold`` or ``CommitRound`` could not be done (a damaged blob, a full disk).

    ``servers_fault``: the server lacked something (room, memory, descriptors), which says nothing of the task.
    """

    task_id: str
    round: int
    attempt: int
    message: str
    servers_fault: bool = False


@dataclass(frozen=True, slots=True)
class TaskRemoved:
    """A person wants an ended task forgotten; the shell removes what is recorded of it."""

    task_id: str


@dataclass(frozen=True, slots=True)
class TaskRecalled:
    """A person asks something of a task that has left the memory: what the ledger has of it, and what is asked.

    ``checkpoint`` is its newest one; None where only the initial weights are left.
    """

    record: TaskRecord
    checkpoint: CheckpointRecord | None
    request: TaskAction | TaskPrioritized | TaskRemoved
    failed_steps: tuple[FailedStepRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class EndConfirmed:
    """The answer to ``ConfirmEnd``: the ledger has the task's end as it stands in ``record``."""

    record: TaskRecord

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self.record.task_id


@dataclass(frozen=True, slots=True)
class ClientRemoved:
    """A person wants a client forgotten; one that is connected only with ``force``."""

    client_id: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class ServerShort:
    """What the server lacks now, so that tasks wait for it; None: it is well again."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class CheckpointDamaged:
    """Another answer to ``OpenRound``: the checkpoint that it names cannot be read (digest, size, missing file).

    ``fallback`` is the newest older one that can, if there is one; ``undone`` are the assignments that committed
    rounds since then had counted.
    """

    task_id: str
    round: int
    attempt: int
    message: str
    fallback: CheckpointRecord | None
    undone: tuple[AssignmentRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; the shell sends one at least every half second.

    ``late_seconds``: how much later than that it is, by the shell's own fault.
    """

    late_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Restored:
    """The first event after a start with facts in the ledger: the coordinator mends what the stop broke."""


Event = (
    TaskSubmitted
    | TaskAction
    | TaskPrioritized
    | ClientConnected
    | ClientLost
    | IdentityShared
    | ClientReady
    | ClientPaused
    | ClientThrottled
    | ClientDraining
    | ClientBeat
    | AssignmentAccepted
    | AssignmentRejected
    | SharesSealed
    | SharesRevealed
    | AssignmentFailed
    | ResultArrived
    | RoundAggregated
    | AggregationFailed
    | ServerShort
    | TaskRemoved
    | TaskRecalled
    | EndConfirmed
    | ClientRemoved
    | CheckpointDamaged
    | CheckpointDurable
    | Tick
    | Restored
)
