"""The commands that the coordinator returns, carried out in order: ``Save`` is durable before what follows it."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.records import CheckpointRecord, Entry, Record, TaskRecord, light_record
from protocol.messages import Message
from protocol.secure_messages import Unmasking
from protocol.tasks import BlobRef, TaskSpec


@dataclass(frozen=True, slots=True)
class Save:
    """Write all of it in one transaction. Later commands of the same answer run only after it is durable."""

    records: tuple[Record, ...]
    entries: tuple[Entry, ...] = ()


@light_record
class Send:
    """Send a message, if that incarnation of the client is still connected.

    The shell lets the bytes of small blobs (``weights`` or ``deltas`` of an assign) ride along, unless the client
    ``holds_weights``: it works on that version already.
    """

    client_id: str
    incarnation: int
    message: Message
    holds_weights: bool = False


@dataclass(frozen=True, slots=True)
class OpenRound:
    """Load the weights and optimizer state of ``checkpoint`` if they are not in memory, and zero the accumulator."""

    task_id: str
    round: int
    attempt: int
    spec: TaskSpec
    checkpoint: CheckpointRecord


@dataclass(frozen=True, slots=True)
class Fold:
    """Fold the update, with a weight of ``samples * scale``. In the order of position, never twice.

    ``scale`` is below 1 for an update of an earlier round. Where votes are counted, each client has one.
    """

    task_id: str
    round: int
    attempt: int
    assignment_id: str
    client_id: str
    update: BlobRef
    samples: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CommitRound:
    """Make the aggregate, step the outer optimizer, and answer ``RoundAggregated``: the new version is there.

    ``epoch`` and ``cursor`` are those of its checkpoint: where the next round begins. Then write that, and say
    ``CheckpointDurable``; of versions that wait for the disk the newest one will do, and a moment later will do too.
    """

    task_id: str
    round: int
    attempt: int
    epoch: int
    cursor: int
    unmasking: Unmasking | None = None
    """What takes the masks off first, where the updates were masked."""


@dataclass(frozen=True, slots=True)
class FlushCheckpoint:
    """The task's next step waits for its newest version: write that without delay."""

    task_id: str


@dataclass(frozen=True, slots=True)
class DropRound:
    """Drop the accumulator; the round is abandoned."""

    task_id: str
    round: int
    attempt: int


@dataclass(frozen=True, slots=True)
class DropUpdate:
    """This stored update is not needed: it came late, twice, or its round was abandoned."""

    update: BlobRef


@dataclass(frozen=True, slots=True)
class ReleaseTask:
    """The task ended or pauses: free its weights and accumulator in memory."""

    task_id: str


@dataclass(frozen=True, slots=True)
class ConfirmEnd:
    """Answer ``EndConfirmed``: all that was saved of this task is durable now, and nothing of it is in flight."""

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class ForgetTask:
    """The task has left the coordinator's memory, and the ledger alone has it: keep nothing of it in memory."""

    task_id: str


@dataclass(frozen=True, slots=True)
class DropClient:
    """Drop the secret of this client, and close its connection; a later one than ``incarnation`` is a newcomer's."""

    client_id: str
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReportDefect:
    """A rule of the farm broke: ``error``, with its traceback, belongs into the log.

    ``task_id`` is the task whose attempt was given up for it, if it could be told; everything else goes on.
    """

    task_id: str | None
    message: str
    error: Exception


Command = (
    Save
    | Send
    | OpenRound
    | Fold
    | CommitRound
    | FlushCheckpoint
    | DropRound
    | DropUpdate
    | ReleaseTask
    | ConfirmEnd
    | ForgetTask
    | DropClient
    | ReportDefect
)
