"""Every message of the WebSocket, as one tagged union.

Direction is written C (client to server), S (server to client) or CS (both); ``protocol.session`` enforces it.
Unknown fields are ignored, so that a newer peer can add some; an unknown ``type`` is answered with an error.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from protocol.artefacts import Artefacts
from protocol.bounds import (
    MAX_SHARDS,
    MAX_TAGS,
    Bytes,
    Code,
    Count,
    FrameBytes,
    Id,
    Int64,
    Interval,
    Label,
    LongText,
    Measured,
    Metrics,
    Natural,
    Positive,
    Seconds,
    Secret,
    StageSeconds,
    Text,
    Traceback,
    Version,
    Word,
)
from protocol.digests import Digest
from protocol.frozen import Frozen
from protocol.limits import (
    HEARTBEAT_SECONDS,
    INLINE_BYTES,
    LOST_AFTER_SECONDS,
    MAX_CACHED_DIGESTS,
    MAX_FRAME_BYTES,
    MAX_LOG_LINES_PER_MESSAGE,
    PROGRESS_SECONDS,
)
from protocol.resources import Load, Resources
from protocol.tasks import BlobRef, Shard, TaskBrief, WeightsDelta


class HeldAssignment(Frozen):
    """An assignment that outlived its connection. ``finished``: its result waits to be sent again."""

    assignment_id: Id
    fence: Natural
    finished: bool = False


class Hello(Frozen):
    """C: the first message. ``client_id`` outlives connections; ``client_secret`` proves it on later ones."""

    type: Literal["hello"] = "hello"
    versions: tuple[Version, ...] = Field(max_length=64)
    client_id: Id
    client_secret: Secret
    name: Label = ""
    agent: Label = ""
    resources: Resources = Resources()
    load: Load = Load()
    tags: tuple[Word, ...] = Field(default=(), max_length=MAX_TAGS)
    cached: tuple[Digest, ...] = Field(default=(), max_length=MAX_CACHED_DIGESTS)
    codecs: tuple[Word, ...] = Field(default=(), max_length=64)
    """The codecs that it knows besides ``none``."""
    features: tuple[Word, ...] = Field(default=(), max_length=64)
    """What it can do that older clients can't. ``frozen_apart``: take frozen tensors as a file of their own."""
    run_id: Word = ""
    """Of the client's process: connections of one run have the same, and no other run has it."""
    held: tuple[HeldAssignment, ...] = Field(default=(), max_length=64)


class Welcome(Frozen):
    """S: the answer to hello. ``incarnation`` numbers this connection: a later one of the same client is higher."""

    type: Literal["welcome"] = "welcome"
    version: Version
    incarnation: Natural
    server: Label = ""
    heartbeat_seconds: Interval = HEARTBEAT_SECONDS
    lost_after_seconds: Interval = LOST_AFTER_SECONDS
    max_frame_bytes: FrameBytes = MAX_FRAME_BYTES
    inline_bytes: Bytes = INLINE_BYTES
    progress_seconds: Interval = PROGRESS_SECONDS
    idle_heartbeat_seconds: Interval | None = None


class Pace(Frozen):
    """S: from now on beat and report at these intervals: slower while the farm is busy. Replaces the welcome's."""

    type: Literal["pace"] = "pace"
    heartbeat_seconds: Interval
    progress_seconds: Interval
    lost_after_seconds: Interval
    idle_heartbeat_seconds: Interval | None = None


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


class Heartbeat(Frozen):
    """C: every ``heartbeat_seconds``, without work every ``idle_heartbeat_seconds``; of all held assignments."""

    type: Literal["heartbeat"] = "heartbeat"
    load: Load = Load()
    assignments: tuple[AssignmentProgress, ...] = Field(default=(), max_length=64)


class Ready(Frozen):
    """C: how many more assignments this client can take now. Replaces the number told before.

    0 from a client that holds nothing: it warms up, and says so again once it has.
    """

    type: Literal["ready"] = "ready"
    slots: int = Field(ge=0, le=64)


class Kind(StrEnum):
    """What is to be done in an assignment."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    EPOCH_END = "epoch_end"


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
    lease_seconds: Seconds
    prefetch: tuple[BlobRef, ...] = Field(default=(), max_length=256)
    """Shards that this client is likely to need next; fetched while it computes, if there is room."""
    upcoming: tuple[Slice, ...] = Field(default=(), max_length=256)
    """Likely all of the next round, and this client's, if its update is all that comes in. A guess."""

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


class RejectCode(StrEnum):
    """Why a client hands an assignment back undone."""

    DOES_NOT_FIT = "does_not_fit"
    BUSY = "busy"
    DRAINING = "draining"
    PAUSED = "paused"
    BLOB_UNAVAILABLE = "blob_unavailable"


class Reject(Frozen):
    """C: the client refuses an assignment, or hands an accepted one back."""

    type: Literal["reject"] = "reject"
    assignment_id: Id
    fence: Natural
    code: RejectCode
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

    ``update``: of training. Bytes over the inline limit, and ``artefacts``, were first PUT to ``/v1/blobs/{digest}``.
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


class Ack(Frozen):
    """S: the result is settled; forget it. ``counted``: a committed round contains it; else it was late or a repeat."""

    type: Literal["ack"] = "ack"
    assignment_id: Id
    fence: Natural
    counted: bool
    message: Text = ""


class Scope(StrEnum):
    """Who could succeed where this failed."""

    HERE = "here"
    """The same client may try again (a passing fault)."""
    ELSEWHERE = "elsewhere"
    """Another client may succeed (this machine's fault)."""
    NOBODY = "nobody"
    """The researcher's code is at fault: it will fail everywhere."""


class Error(Frozen):
    """CS: something failed. With ``assignment_id`` that assignment failed; without, it answers a bad frame."""

    type: Literal["error"] = "error"
    code: Code
    message: LongText
    assignment_id: Id | None = None
    fence: Natural | None = None
    scope: Scope = Scope.ELSEWHERE
    traceback: Traceback | None = None
    failed_step: BlobRef | None = None
    """C: the state and the batch of the step in which the task's code failed, PUT to ``/v1/blobs/{digest}`` before."""
    fatal: bool = False
    """The sender closes the connection after this."""


class Cancel(Frozen):
    """S: stop this assignment now and forget it."""

    type: Literal["cancel"] = "cancel"
    assignment_id: Id
    fence: Natural
    reason: Text = ""


class Pause(Frozen):
    """CS. S: free what this task holds (its executor, its GPU). C without a task: offer me nothing for now."""

    type: Literal["pause"] = "pause"
    task_id: Id | None = None
    reason: Text = ""


class Resume(Frozen):
    """CS: the end of a pause."""

    type: Literal["resume"] = "resume"
    task_id: Id | None = None


class Drain(Frozen):
    """CS. C: I finish what I hold, offer me nothing more. S: the server goes down soon; finish or hand back."""

    type: Literal["drain"] = "drain"
    reason: Text = ""


class Bye(Frozen):
    """CS: the last message before the close; ``crashed`` if the sender dies of an error.

    S: ``replaced`` if another connection of the same ``client_id`` took this one's place.
    """

    type: Literal["bye"] = "bye"
    reason: Text = ""
    crashed: bool = False
    replaced: bool = False


Message = Annotated[
    Hello
    | Welcome
    | Pace
    | Heartbeat
    | Ready
    | Assign
    | Prefetch
    | Accept
    | Reject
    | Progress
    | Result
    | Ack
    | Error
    | Cancel
    | Pause
    | Resume
    | Drain
    | Bye,
    Field(discriminator="type"),
]

MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
