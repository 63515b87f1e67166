"""The messages about one assignment: its offer, the answer to that, progress, the result, and what became of it.

Direction is written as in ``protocol.messages``, whose union these belong to.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from protocol.artefacts import Artefacts
from protocol.bounds import (
    MAX_SHARDS,
    Bytes,
    Count,
    Id,
    Int64,
    Label,
    Measured,
    Metrics,
    Natural,
    Positive,
    Seconds,
    StageSeconds,
    Text,
)
from protocol.credit import Credit
from protocol.frozen import Frozen
from protocol.limits import (
    MAX_LOG_LINES_PER_MESSAGE,
)
from protocol.secure_messages import PublicKeys, SecureTerms
from protocol.tasks import BlobRef, Shard, TaskBrief, WeightsDelta


class Phase(StrEnum):
    """What a client is doing with an assignment."""

    FETCHING = "fetching"
    STARTING = "starting"
    COMPUTING = "computing"
    UPLOADING = "uploading"


class AssignmentProgress(Frozen):
    """How far one assignment is; it renews the assignment's lease."""

    assignment_id: Id
    fence: Natural
    phase: Phase
    samples_done: Count = 0
    fetched_bytes: Bytes = 0
    waits: Count = 0


class Kind(StrEnum):
    """What is to be done in an assignment."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    EPOCH_END = "epoch_end"
    MAP = "map"


class Slice(Frozen):
    """Rows ``start`` to ``stop`` of a shard, counted in the epoch's order of that shard."""

    shard: Shard
    start: Count
    stop: Positive

    @property
    def samples(self) -> int:
        """Count the samples of the slice."""
        return self.stop - self.start


class Assign(Frozen):
    """S: one client's part of one round. ``fence`` is the lease's fencing token: echo it in every answer."""

    type: Literal["assign"] = "assign"
    assignment_id: Id
    fence: Natural
    kind: Kind
    task: TaskBrief
    round: Count
    epoch: Count
    weights: BlobRef
    deltas: tuple[WeightsDelta, ...] = Field(default=(), max_length=256)
    """A chain that ends at ``weights``: whoever holds the base of one of its links may take the rest instead."""
    inner_state: BlobRef | None = None
    """What the inner optimizer begins with, where the version carries it; none yet before the first round."""
    slices: tuple[Slice, ...] = Field(max_length=MAX_SHARDS)
    samples_before: Count = 0
    """Samples that the task was trained on before this round; schedules go by them, and by ``round_samples``."""
    round_samples: Count = 0
    failed_step_bytes: Bytes = 0
    """How large a file the farm takes of the step in which the task's code fails; 0: it keeps none (any more)."""
    position: Count = 0
    """The place of its first sample in the round; of a map in the data."""
    data_part: Count | None = None
    """The virtual client whose rows these are, from 0, where a task with a split has control variates."""
    lease_seconds: Seconds
    prefetch: tuple[BlobRef, ...] = Field(default=(), max_length=256)
    """Shards that this client is likely to need next; fetched while it computes, if there is room."""
    upcoming: tuple[Slice, ...] = Field(default=(), max_length=256)
    """Likely all of the next round, and this client's, if its update is all that comes in. A guess."""
    secure: SecureTerms | None = None
    """Of a round whose sum alone the farm is to learn: the update is masked before it leaves."""

    @property
    def samples(self) -> int:
        """Count the samples of all slices."""
        return sum(s.samples for s in self.slices)


class Prefetch(Frozen):
    """S: blobs that this client is likely to need soon; fetched while it computes, if there is room. Not answered."""

    type: Literal["prefetch"] = "prefetch"
    blobs: tuple[BlobRef, ...] = Field(max_length=256)


class Accept(Frozen):
    """C: the client will do this assignment."""

    type: Literal["accept"] = "accept"
    assignment_id: Id
    fence: Natural
    keys: PublicKeys | None = None
    """Where the offer has ``secure``: this client's keys of the round."""


class RejectCode(StrEnum):
    """Why a client hands an assignment back undone."""

    DOES_NOT_FIT = "does_not_fit"
    BUSY = "busy"
    DRAINING = "draining"
    PAUSED = "paused"
    BLOB_UNAVAILABLE = "blob_unavailable"
    OWNER = "owner"
    """Its owner's settings do not allow this task: whose it is, or what it asks for. Only said to servers that name a
    task's submitter; older ones do not know the word."""
    ENVIRONMENT = "environment"
    """The task's environment is not there yet: it is being installed, or could not be. Older servers have no such
    task."""
    OTHER = "other"
    """A word that only newer clients know; its message says the rest."""


def _known_code(word: Any) -> Any:
    return RejectCode.OTHER if isinstance(word, str) and word not in _REJECT_CODES else word


_REJECT_CODES: Final = frozenset(RejectCode)


class Reject(Frozen):
    """C: the client refuses an assignment, or hands an accepted one back."""

    type: Literal["reject"] = "reject"
    assignment_id: Id
    fence: Natural
    code: Annotated[RejectCode, BeforeValidator(_known_code)]
    message: Text = ""


class MetricPoint(Frozen):
    """One value that the researcher's code logged."""

    name: Label
    value: Measured
    step: Int64 = 0


class LogLine(Frozen):
    """One line that the researcher's code printed (``stdout``, ``stderr``) or the agent noted (``agent``)."""

    stream: Literal["stdout", "stderr", "agent"] = "stdout"
    text: Text


class Progress(Frozen):
    """C: metrics and log lines of a running assignment, as they come, batched."""

    type: Literal["progress"] = "progress"
    progress: AssignmentProgress
    metrics: tuple[MetricPoint, ...] = Field(default=(), max_length=200)
    logs: tuple[LogLine, ...] = Field(default=(), max_length=MAX_LOG_LINES_PER_MESSAGE)


class WorkStage(StrEnum):
    """What an assignment's time goes into on its client; stages of a pipelined task overlap with the next one's."""

    FETCH = "fetch"
    """Weights and shards come into the cache."""
    START = "start"
    """An executor imports the code and builds the model; of a task's first assignment."""
    LOAD = "load"
    """The weights go into the model, and onto its device."""
    TRAIN = "train"
    """The steps, and base minus local."""
    COPY = "copy"
    """The update comes off the device."""
    WRITE = "write"
    """The update is encoded, hashed and written."""
    UPLOAD = "upload"
    """An update that no message carries goes to the farm, turns that it waits for included."""


class Result(Frozen):
    """C: an assignment is done.

    ``update``: of training, or a map's outputs. Bytes over the inline limit, and ``artefacts``, were first PUT to
    ``/v1/blobs/{digest}``.
    ``metrics`` are means over the assignment's samples (``loss`` among them).
    """

    type: Literal["result"] = "result"
    assignment_id: Id
    fence: Natural
    samples: Positive
    metrics: Metrics = Field(default_factory=dict)
    update: BlobRef | None = None
    artefacts: Artefacts = ()
    compute_seconds: Seconds = 0.0
    stage_seconds: StageSeconds = Field(default_factory=dict)
    flops_per_sample: Count = 0
    """Floating point operations of training on a sample, as the client counted them; 0: not known."""


class Ack(Frozen):
    """S: the result is settled; forget it. ``counted``: a committed round contains it; else it was late or a repeat."""

    type: Literal["ack"] = "ack"
    assignment_id: Id
    fence: Natural
    counted: bool
    message: Text = ""
    credit: Credit | None = None
    """All that the client is credited with, this included; only for those that know ``credit``."""


class Cancel(Frozen):
    """S: stop this assignment now and forget it."""

    type: Literal["cancel"] = "cancel"
    assignment_id: Id
    fence: Natural
    reason: Text = ""
