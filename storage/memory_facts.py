"""Records in plain dictionaries: what an in-memory ledger holds, and what any ledger must come to.

Written for reading: each rule of ``storage.ports.ledger`` is a line or two here. The SQL of ``storage.reads`` and
``storage.saving`` is the same on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from coordinator.lifecycle import ACTIVE, HELD, TaskState
from coordinator.records import (
    ArtefactRecord,
    AssignmentRecord,
    CheckpointRecord,
    ClientCredit,
    ClientRecord,
    CreditEntry,
    Entry,
    EventRecord,
    FailedItemRecord,
    FailedStepRecord,
    LogRecord,
    MetricRecord,
    OutputRecord,
    Record,
    RemovedClient,
    RoundRecord,
    RoundState,
    Snapshot,
    TaskRecord,
)
from protocol.errors import Conflict
from protocol.tasks import BlobRef, TaskSpec
from storage import credit_sums
from storage.errors import BadRecord
from storage.mapping import (
    ARTEFACT,
    FAILED_STEP,
    KEPT_ROLES,
    LEFT_BY_TASKS,
    MAPPERS,
    OUTPUT,
    artefact_record,
    blob_rows,
    output_record,
    without_bytes,
)
from storage.ports.ledger import CreditBy, CreditQuery, History, Numbered, TaskUsage

R = TypeVar("R", bound=Record)
E = TypeVar("E", bound=Entry)
_SUMMED: Final = ("assignments", "samples", "measured_samples", "gigaflops", "flops")
_HOLDABLE: Final = (str, int, float, tuple, Mapping, BaseModel, type(None))
_INTEGERS: Final = range(-(2**63), 2**63)
_MAY_TRAIN: Final = ACTIVE | {TaskState.FAILED}


class MemoryFacts:
    """Everything that is kept, by key. ``apply`` changes it whole or not at all."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskRecord] = {}
        self.clients: dict[str, ClientRecord] = {}
        self.rounds: dict[tuple[str, int], RoundRecord] = {}
        self.assignments: dict[str, AssignmentRecord] = {}
        self.checkpoints: dict[tuple[str, int], CheckpointRecord] = {}
        self.failed_items: dict[tuple[str, int], FailedItemRecord] = {}
        self.feeds: dict[type[Entry], list[Numbered[Any]]] = {EventRecord: [], LogRecord: [], MetricRecord: []}
        self.credits: dict[tuple[str, str, str, int], CreditEntry] = {}
        self._numbers: dict[type[Entry], int] = dict.fromkeys(self.feeds, 0)
        self._named: dict[str, dict[tuple[str, str], int]] = {}
        """Sizes of the blobs that submissions name, by task, then role and digest."""

    def apply(self, records: Iterable[Record], entries: Iterable[Entry]) -> None:
        """Take in one transaction. Raises: BadRecord; Conflict. Nothing is changed then."""
        kept = [_as_kept(record) for record in records]
        added = list(entries)
        for record in (*kept, *added):
            _check(record)
        self._check_tokens(kept)
        for record in kept:
            self._keep(record)
        for entry in added:
            if isinstance(entry, CreditEntry):
                self._credit(entry)
                continue
            self._numbers[type(entry)] += 1
            self.feeds[type(entry)].append(Numbered(self._numbers[type(entry)], entry))

    def _check_tokens(self, records: Iterable[Record]) -> None:
        owners = {task.spec.submit_token: task.task_id for task in self.tasks.values() if task.spec.submit_token}
        for task in records:
            token = task.spec.submit_token if isinstance(task, TaskRecord) else None
            if token and isinstance(task, TaskRecord) and owners.setdefault(token, task.task_id) != task.task_id:
                raise Conflict("another task has this submit token already; ask for that task instead")

    def _keep(self, record: Record) -> None:
        match record:
            case TaskRecord():
                self.tasks[record.task_id] = record
                named = self._named.setdefault(record.task_id, {})
                for row in blob_rows(record.task_id, record.spec):
                    named.setdefault((row["role"], row["digest"]), row["size_bytes"])
            case ClientRecord():
                self.clients[record.client_id] = record
            case RemovedClient():
                self.clients.pop(record.client_id, None)
            case RoundRecord():
                self.rounds[record.task_id, record.number] = record
            case AssignmentRecord():
                self.assignments[record.assignment_id] = record
            case CheckpointRecord():
                self.checkpoints[record.task_id, record.round] = record
            case FailedItemRecord():
                self.failed_items[record.task_id, record.position] = record
            case FailedStepRecord() | ArtefactRecord() | OutputRecord():
                role = MAPPERS[type(record)].derived["role"](record)
                self._named.setdefault(record.task_id, {}).setdefault((role, record.digest), record.size_bytes)

    def _credit(self, entry: CreditEntry) -> None:
        key = (entry.client_id, entry.team, entry.task_id, entry.day)
        if (known := self.credits.get(key)) is not None:
            sums = {name: getattr(known, name) + getattr(entry, name) for name in _SUMMED}
            entry = replace(known, **sums)
        self.credits[key] = entry

    def snapshot(self) -> Snapshot:
        """Return what a server needs to go on after a restart."""
        unfinished = {name: task for name, task in self.tasks.items() if task.state in ACTIVE}
        newest = {key[0]: c for key, c in sorted(self.checkpoints.items()) if key[0] in unfinished and self._is_seen(c)}
        times = [at for task in self.tasks.values() for at in (task.created_at, task.finished_at) if at is not None]
        held = [a for a in self.assignments.values() if a.state in HELD]
        return Snapshot(
            tasks=tuple(sorted(unfinished.values(), key=lambda task: (task.created_at, task.task_id))),
            clients=tuple(self.clients[client_id] for client_id in sorted(self.clients)),
            rounds=tuple(one for one in self.rounds.values() if one.state is RoundState.OPEN),
            assignments=tuple(sorted(held, key=lambda a: (a.task_id, a.position))),
            checkpoints=tuple(newest.values()),
            failed_steps=tuple(step for name in unfinished for step in self.failed_steps_of(name)),
            last_fence=max((a.fence for a in self.assignments.values()), default=0),
            credits=tuple(
                ClientCredit(one.key, one.samples, one.flops)
                for one in credit_sums.sum_up(self.credits.values(), CreditQuery(CreditBy.CLIENT))
            ),
            newest_at=max(times, default=0.0),
        )

    def checkpoints_of(self, task_id: str) -> list[CheckpointRecord]:
        """Return the task's checkpoints, oldest first, without those beyond its version: the task fell back."""
        mine = sorted((c for c in self.checkpoints.values() if c.task_id == task_id), key=lambda c: c.round)
        return [c for c in mine if self._is_seen(c)]

    def failed_steps_of(self, task_id: str) -> list[FailedStepRecord]:
        """Return the task's failed steps, by their lines."""
        named = sorted(self._named.get(task_id, {}).items())
        return [
            FailedStepRecord(task_id, role.removeprefix(FAILED_STEP), digest, size_bytes)
            for (role, digest), size_bytes in named
            if role.startswith(FAILED_STEP)
        ]

    def artefacts_of(self, task_id: str) -> list[ArtefactRecord]:
        """Return the task's artefacts, by epoch and name."""
        found = [
            artefact_record(task_id, role, digest, size_bytes)
            for (role, digest), size_bytes in self._named.get(task_id, {}).items()
            if role.startswith(ARTEFACT)
        ]
        return sorted(found, key=lambda file: (file.epoch, file.name))

    def outputs_of(self, task_id: str, start: int = 0) -> list[OutputRecord]:
        """Return what there is of a map's outputs from the part on that has the item ``start``, in order."""
        found = [
            output_record(task_id, role, digest, size_bytes)
            for (role, digest), size_bytes in self._named.get(task_id, {}).items()
            if role.startswith(OUTPUT)
        ]
        return sorted((part for part in found if part.position + part.samples > start), key=lambda part: part.position)

    def failed_items_of(self, task_id: str, start: int = 0) -> list[FailedItemRecord]:
        """Return the items of a map that failed, from the item ``start`` on, in order."""
        mine = [item for (owner, _), item in self.failed_items.items() if owner == task_id and item.position >= start]
        return sorted(mine, key=lambda item: item.position)

    def _is_seen(self, checkpoint: CheckpointRecord) -> bool:
        task = self.tasks.get(checkpoint.task_id)
        return task is None or checkpoint.round <= task.version

    def referenced_digests(self, ended_since: float | None = None) -> set[str]:
        """Return the names of all blobs that something kept still needs."""
        may_go_on = {
            task_id
            for task_id, task in self.tasks.items()
            if task.state in _MAY_TRAIN or _ended_since(task, ended_since)
        }
        needed = {
            digest
            for task_id, named in self._named.items()
            for role, digest in named
            if role in KEPT_ROLES or role.startswith(LEFT_BY_TASKS) or task_id in may_go_on
        }
        needed |= {ref.digest for c in self.checkpoints.values() for ref in c.blobs}
        for one in self.assignments.values():
            round_ = self.rounds.get((one.task_id, one.round))
            waits = round_ is not None and round_.state is RoundState.OPEN and round_.attempt == one.attempt
            if one.update is not None and waits and not one.counted:
                needed.add(one.update.digest)
        return needed

    def numbers(self, history: History, task_id: str) -> list[int]:
        """Return the numbers by which a task's history is ordered, oldest first."""
        return sorted(number for number, owner in self._rows(history) if owner == task_id)

    def _rows(self, history: History) -> list[tuple[int, str | None]]:
        match history:
            case History.ROUNDS:
                return [(one.number, one.task_id) for one in self.rounds.values()]
            case History.ASSIGNMENTS:
                return [(one.round, one.task_id) for one in self.assignments.values()]
        return [(one.seq, one.entry.task_id) for one in self.feeds[_FEEDS[history]]]

    def prune(self, history: History, task_id: str, upto: int) -> None:
        """Remove a task's history up to that number."""
        match history:
            case History.ROUNDS:
                self.rounds = {k: one for k, one in self.rounds.items() if k[0] != task_id or k[1] > upto}
            case History.ASSIGNMENTS:
                kept = {k: one for k, one in self.assignments.items() if one.task_id != task_id or one.round > upto}
                self.assignments = kept
            case _:
                feed = self.feeds[_FEEDS[history]]
                feed[:] = [one for one in feed if one.entry.task_id != task_id or one.seq > upto]

    def remove_task(self, task_id: str) -> None:
        """Remove all that is recorded of a task."""
        for history in History:
            self.prune(history, task_id, max(self.numbers(history, task_id), default=0))
        self.checkpoints = {key: c for key, c in self.checkpoints.items() if key[0] != task_id}
        self.failed_items = {key: item for key, item in self.failed_items.items() if key[0] != task_id}
        self._named.pop(task_id, None)
        self.tasks.pop(task_id, None)

    def usage(self, task_id: str) -> TaskUsage:
        """Return what the task takes."""
        sizes = {digest: size for (_, digest), size in self._named[task_id].items()}
        mine = [c for c in self.checkpoints.values() if c.task_id == task_id]
        sizes |= {ref.digest: ref.size_bytes for c in mine for ref in c.blobs}
        histories = (History.LOGS, History.METRICS, History.EVENTS, History.ASSIGNMENTS)
        return TaskUsage(task_id, sum(sizes.values()), sum(len(self.numbers(h, task_id)) for h in histories))


_FEEDS: Final[Mapping[History, type[Entry]]] = {
    History.LOGS: LogRecord,
    History.METRICS: MetricRecord,
    History.EVENTS: EventRecord,
}


def _check(record: Record | Entry) -> None:
    """Refuse what no column could hold. Raises: BadRecord."""
    for field in fields(record):
        value = getattr(record, field.name)
        if not isinstance(value, (*_HOLDABLE, TaskSpec)) or (isinstance(value, int) and value not in _INTEGERS):
            raise BadRecord(f"the ledger cannot hold this record ({field.name} is {value!r}); correct it and try again")


def _as_kept(record: R) -> R:
    """Return the record as it comes back: without bytes inside of references, and without a loss that is none."""
    changes: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, BlobRef):
            changes[field.name] = value.bare()
        elif isinstance(value, TaskSpec):
            changes[field.name] = without_bytes(value)
        elif field.name == "loss" and value is not None and math.isnan(value):
            changes[field.name] = None
    return replace(record, **changes) if changes else record


def _ended_since(task: TaskRecord, since: float | None) -> bool:
    return since is not None and task.finished_at is not None and task.finished_at >= since
