"""What one transaction of the ledger writes, as few statements: rows of one table travel together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, delete

from coordinator.lifecycle import ENDED
from coordinator.records import Entry, Record, TaskRecord
from protocol.tasks import TaskSpec
from storage.mapping import CHECKPOINTS, CLIENTS, Row, blob_rows, submission_row
from storage.pruning import Pruned, prune, remove_task
from storage.saving import SAVINGS, Parameters, insert_statement
from storage.tables import BlobRow, SubmissionRow, table_of

_SUBMISSIONS: Final = insert_statement(table_of(SubmissionRow))
_BLOBS: Final = insert_statement(table_of(BlobRow))


@dataclass(frozen=True, slots=True)
class Change:
    """What is written for one caller, all or nothing.

    ``dropped`` are keys (task_id, round) of checkpoints, ``pruned`` parts of histories, ``removed`` ids of tasks,
    ``removed_clients`` ids of clients.
    """

    records: tuple[Record, ...] = ()
    entries: tuple[Entry, ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()
    pruned: tuple[Pruned, ...] = ()
    removed: tuple[str, ...] = ()
    removed_clients: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Count what is written."""
        return len(self.records) + len(self.entries) + len(self.dropped)

    @property
    def removes(self) -> bool:
        """Whether it takes anything away."""
        return bool(self.dropped or self.pruned or self.removed or self.removed_clients)


class StoredSpecs:
    """Which specifications the ledger is known to hold, so that saving a task each round does not repeat its own."""

    def __init__(self) -> None:
        self._specs: dict[str, TaskSpec] = {}

    def lacks(self, task: TaskRecord) -> bool:
        """Whether this very specification has not been committed yet."""
        return self._specs.get(task.task_id) is not task.spec

    def committed(self, changes: Iterable[Change]) -> None:
        """Note what a committed transaction wrote, and forget tasks that ended."""
        for change in changes:
            for record in change.records:
                if isinstance(record, TaskRecord):
                    if record.state in ENDED:
                        self._specs.pop(record.task_id, None)
                    else:
                        self._specs[record.task_id] = record.spec


def write_changes(connection: Connection, changes: Iterable[Change], stored: StoredSpecs) -> None:
    """Execute the changes in the connection's transaction; the later of two changes of one row wins.

    Removals come last, so a change that drops must be the last of its transaction.
    """
    saved: dict[type[Record | Entry], list[Parameters]] = {}
    submissions: list[Row] = []
    blobs: list[Row] = []
    dropped: list[Row] = []
    removals: list[Change] = []
    for change in changes:
        for record in (*change.records, *change.entries):
            kind = type(record)
            saved.setdefault(kind, []).append(SAVINGS[kind].parameters(record))
            if isinstance(record, TaskRecord) and stored.lacks(record):
                submissions.append(submission_row(record.task_id, record.spec))
                blobs += blob_rows(record.task_id, record.spec)
        removals += [change] if change.removes else []
        dropped += [{"dropped_task": task_id, "dropped_round": number} for task_id, number in change.dropped]
    for kind, parameters in saved.items():
        connection.exec_driver_sql(SAVINGS[kind].statement, parameters)
    for statement, rows in ((_SUBMISSIONS, submissions), (_BLOBS, blobs), (_DROP_CHECKPOINT, dropped)):
        if rows:
            connection.execute(statement, rows)
    for change in removals:
        _remove(connection, change)


def _remove(connection: Connection, change: Change) -> None:
    for pruned in change.pruned:
        prune(connection, pruned)
    for task_id in change.removed:
        remove_task(connection, task_id)
    for client_id in change.removed_clients:
        connection.execute(delete(CLIENTS.table).where(CLIENTS.table.c.client_id == client_id))


_DROP_CHECKPOINT: Final = delete(CHECKPOINTS.table).where(
    CHECKPOINTS.table.c.task_id == bindparam("dropped_task"),
    CHECKPOINTS.table.c.round == bindparam("dropped_round"),
)
