"""The ledger: the farm's records, written in transactions and read by anybody.

Each sentence with a MUST is held to every implementation by ``tests/contract``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from coordinator.lifecycle import TaskState
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    Entry,
    EventRecord,
    FailedItemRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    OutputRecord,
    Record,
    RoundRecord,
    Snapshot,
    TaskRecord,
)

T = TypeVar("T")
FEED_LIMIT: Final = 1000
"""Entries of one answer, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class LedgerIdentity:
    """``starts`` only grows: an older copy of a ledger has a lower one than the blobs beside it know of."""

    ledger_id: str
    starts: int


@dataclass(frozen=True, slots=True)
class Numbered(Generic[T]):
    """An entry with its number: later entries have higher ones, and no number is used twice."""

    seq: int
    entry: T


class History(StrEnum):
    """What is recorded of a task's past, each oldest first by its number: ``seq``, or the round's."""

    LOGS = "logs"
    METRICS = "metrics"
    EVENTS = "events"
    ASSIGNMENTS = "assignments"
    ROUNDS = "rounds"


class TaskKey(NamedTuple):
    """A task's place in the order of submission: seconds on the server's clock, then the id."""

    created_at: float
    task_id: str


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """A task's state, and when it ended, if it did. Seconds on the server's clock."""

    task_id: str
    state: str
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class TaskUsage:
    """What one task takes: bytes of the blobs that it names, and rows of its history in the ledger."""

    task_id: str
    blob_bytes: int
    rows: int


class CreditBy(StrEnum):
    """Whose credit is added up."""

    CLIENT = "client"
    TEAM = "team"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class CreditQuery:
    """Which credit is added up, by what: days count from 1970 (UTC), and None asks for all."""

    by: CreditBy
    since_day: int = 0
    task_id: str | None = None
    client_id: str | None = None
    team: str | None = None


@dataclass(frozen=True, slots=True)
class CreditSum:
    """Credit of one client, team or task, whose id or name is the ``key``; the FLOPs are of ``measured_samples``."""

    key: str
    assignments: int
    samples: int
    measured_samples: int
    flops: int
    first_day: int
    last_day: int


class LedgerReader(Protocol):
    """The ledger's queries. An answer MUST show every save that was acknowledged before the question.

    What was never saved MUST be answered with None, or with nothing. Raises, out of any method: Unavailable if the
    disk or another program keeps it from reading; DamagedLedger.
    """

    async def load(self) -> Snapshot:
        """Return what a server needs to go on after a restart.

        That MUST be all clients and the tasks that have not ended, open rounds, held assignments, of each of these
        tasks the newest checkpoint up to its version (a later one was damaged, and the task fell back). Of what is not
        loaded it MUST tell the highest fence of all assignments ever, and the latest submission or end of any task.
        """

    async def task_page(self, limit: int, before: TaskKey | None = None) -> list[TaskKey]:
        """Return up to ``limit`` tasks, of those that come after ``before`` in the list.

        They MUST come newest first, and a walk from page to page MUST meet each task once that was there when it began,
        whatever is submitted or removed meanwhile.
        """

    async def tasks(self, task_ids: Sequence[str]) -> list[TaskRecord]:
        """Return these tasks, in no order; unknown ones MUST be left out."""

    async def task_counts(self) -> Mapping[TaskState, int]:
        """Return how many tasks are in each state: it MUST count all, and name no state that none is in."""

    async def task_end(self, task_id: str) -> TaskEnd | None:
        """Return the task's state and end, without what was submitted."""

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return the task."""

    async def task_by_token(self, submit_token: str) -> TaskRecord | None:
        """Return the task that was submitted with this token."""

    async def rounds(self, task_id: str, limit: int = 50) -> list[RoundRecord]:
        """Return the task's newest rounds: they MUST come newest first, and no more than ``limit``."""

    async def assignments(self, task_id: str, counted_only: bool = False) -> list[AssignmentRecord]:
        """Return the task's assignments, which MUST come by round and position; or only those that a round counted."""

    async def checkpoints(self, task_id: str) -> list[CheckpointRecord]:
        """Return the task's kept checkpoints, which MUST come oldest first, without any beyond the task's version."""

    async def checkpoint(self, task_id: str, round: int | None = None) -> CheckpointRecord | None:  # noqa: A002  # the field's name
        """Return the task's checkpoint of that round, or its newest one; None if it is not kept."""

    async def failed_steps(self, task_id: str) -> list[FailedStepRecord]:
        """Return the task's failed steps, which MUST come by their lines.

        They, and their blobs, MUST stay for as long as the task does.
        """

    async def artefacts(self, task_id: str) -> list[ArtefactRecord]:
        """Return the task's artefacts, which MUST come by epoch and name, and MUST stay as failed steps do."""

    async def outputs(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[OutputRecord]:
        """Return a map's outputs, at most ``limit`` parts, from the one on that has the item ``start``.

        They MUST come in the order of their positions, and MUST stay as failed steps do.
        """

    async def failed_items(self, task_id: str, start: int = 0, limit: int = FEED_LIMIT) -> list[FailedItemRecord]:
        """Return a map's items that have no output, at most ``limit``, from the item ``start`` on.

        They MUST come in the order of their positions, and MUST stay for as long as the outputs do.
        """

    async def events(
        self, task_id: str | None = None, after: int = 0, limit: int = FEED_LIMIT
    ) -> list[Numbered[EventRecord]]:
        """Return events of one task, or with None of the whole farm.

        A feed MUST go on behind the number ``after``, oldest first, with no entry twice and none left out.
        """

    async def logs(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[LogRecord]]:
        """Return the task's log lines, as ``events`` does."""

    async def metrics(self, task_id: str, after: int = 0, limit: int = FEED_LIMIT) -> list[Numbered[MetricRecord]]:
        """Return the task's metrics, as ``events`` does. A value that is no number MUST come back as such."""

    async def credit(self, query: CreditQuery) -> list[CreditSum]:
        """Return the sums of a query: they MUST be exact, and come with the most FLOPs first, then the most samples.

        Entries of one key MUST be added up, and credit MUST stay when its task or its client is removed.
        """

    async def referenced_digests(self, ended_since: float | None = None) -> set[str]:
        """Return the names of all blobs that something kept still needs.

        A task MUST keep its initial and frozen weights for ever, its code and shards while it may train (FAILED may be
        retried), and those of one that ended at ``ended_since`` (seconds) or later MUST be named too; a checkpoint its
        blobs until it is dropped; an update MUST be kept until its round is decided.
        """

    async def beyond(self, history: History, task_id: str, keep: int) -> int | None:
        """Return up to which number a task's history is too long, where the newest ``keep`` rows stay; None if not."""

    async def count_upto(self, history: History, task_id: str, upto: int) -> int:
        """Count the rows of a task's history up to that number."""

    async def task_ends(self) -> list[TaskEnd]:
        """Return each task's state and end."""

    async def usage(self) -> list[TaskUsage]:
        """Return what each task takes: it MUST be the largest first, and a blob named twice by a task counts once."""


class Ledger(LedgerReader, Protocol):
    """Saves the coordinator's records and answers what was saved. One event loop uses it.

    What was saved MUST be there after a restart. Saving a record again MUST replace it; an entry is appended.
    """

    identity: LedgerIdentity

    @property
    def failure(self) -> str | None:
        """Why nothing is taken while a save insists. It MUST be None as soon as all is well again."""

    def submit(
        self, records: Iterable[Record], entries: Iterable[Entry] = (), *, insist: bool = False
    ) -> asyncio.Future[None]:
        """Queue a save behind those before it. The future is done once it is durable, or refused as in ``save``.

        Saves MUST be written in the order of their submission. A save that insists MUST NOT be refused with
        Unavailable before the close, and nothing submitted after it may be written before it; one that does not insist
        MUST be refused meanwhile. A cancelled caller MUST neither undo its save nor disturb another one.
        """

    async def save(self, records: Iterable[Record], entries: Iterable[Entry] = ()) -> None:
        """Write all of it in one transaction; on return it is durable.

        A save MUST be written whole or not at all, and one that is refused MUST fail alone. Bytes that ride inside a
        reference (``BlobRef.carried``) MUST NOT be kept.

        Raises: Conflict if another task has the submit token (there MUST be one task a token); BadRecord if the ledger
            cannot hold a record; Unavailable if the disk is full, read-only or failing, or the ledger is closed.
        """

    async def drop_checkpoints(self, task_id: str, rounds: Iterable[int]) -> None:
        """Drop these checkpoints; unknown ones MUST be no error, and one saved later MUST be there."""

    async def prune(self, history: History, task_id: str, upto: int) -> int:
        """Remove a task's history up to that number, which MUST leave every other row; return how many went."""

    async def remove_task(self, task_id: str) -> None:
        """Remove all that is recorded of a task, and MUST leave every other task whole. Twice is harmless."""

    async def close(self) -> None:
        """Write what was submitted, then close: a later save MUST be refused with Unavailable. Twice is harmless."""
