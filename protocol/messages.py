"""Every message of the WebSocket, as one tagged union.

Direction is written C (client to server), S (server to client) or CS (both); ``protocol.session`` enforces it.
Unknown fields are ignored, so that a newer peer can add some; an unknown ``type`` is answered with an error.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from protocol.assignments import Accept, Ack, Assign, AssignmentProgress, Cancel, Prefetch, Progress, Reject, Result
from protocol.bounds import (
    MAX_TAGS,
    Bytes,
    Code,
    FrameBytes,
    Id,
    Interval,
    Label,
    LongText,
    Natural,
    Secret,
    Text,
    Traceback,
    Version,
    Word,
)
from protocol.digests import Digest
from protocol.environments import Environments
from protocol.frozen import Frozen
from protocol.limits import (
    HEARTBEAT_SECONDS,
    INLINE_BYTES,
    LOST_AFTER_SECONDS,
    MAX_CACHED_DIGESTS,
    MAX_FRAME_BYTES,
    PROGRESS_SECONDS,
)
from protocol.resources import Load, Resources
from protocol.sandbox import Sandbox
from protocol.secure_messages import PeerShares, Revealed, RoundKeys, SealedShares, Survivors
from protocol.tasks import BlobRef
from protocol.wanted_work import WantedWork


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
    sandbox: Sandbox | None = None
    """What it runs a task's code in. None: it is older than sandboxes, which counts as the rung ``none``."""
    environments: Environments | None = None
    """Which task environments it has, and whether it installs others. None: it has none and installs none."""
    team: Label = ""
    """For whom the machine computes, if for a team: whom its work is credited to as well."""
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
    environments: Environments | None = None
    """What it has of task environments now; None: as it told before."""
    wanted: WantedWork | None = None
    """Which work its owner wants done; None: as it told before over this connection, at first anything."""


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


class Pause(Frozen):
    """CS. S: free what this task holds (its executor, its GPU). C without a task: offer me nothing for now."""

    type: Literal["pause"] = "pause"
    task_id: Id | None = None
    reason: Text = ""


class Resume(Frozen):
    """CS: the end of a pause. C, paused or not: offer again what my owner refused before."""

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
    | Bye
    | RoundKeys
    | SealedShares
    | PeerShares
    | Survivors
    | Revealed,
    Field(discriminator="type"),
]

MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)
