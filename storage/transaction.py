"""What one transaction of the ledger writes, as few statements: rows of one table travel together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Insert, Table, bindparam, delete
from sqlalchemy.dialects.sqlite import insert

from coordinator.lifecycle import ENDED
from coordinator.records import Entry, Record, TaskRecord
from protocol.tasks import TaskSpec
from storage.mapping import CHECKPOINTS, EVENTS, LOGS, MAPPERS, METRICS, Row, blob_rows, submission_row
from storage.tables import BlobRow, SubmissionRow, table_of

_APPENDED: Final = frozenset({EVENTS.table, METRICS.table, LOGS.table})
_SUBMISSIONS: Final = table_of(SubmissionRow)
_BLOBS: Final = table_of(BlobRow)


@dataclass(frozen=True, slots=True)
class Change:
    """What one caller wants written, all or nothing. ``dropped`` are keys (task_id, round) of checkpoints."""

    records: tuple[Record, ...] = ()
    entries: tuple[Entry, ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """Count what is written."""
        return len(self.records) + len(self.entries) + len(self.dropped)


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
    rows: dict[Table, list[Row]] = {}
    dropped: list[Row] = []
    for change in changes:
        for record in (*change.records, *change.entries):
            mapper = MAPPERS[type(record)]
            rows.setdefault(mapper.table, []).append(mapper.row(record))
            if isinstance(record, TaskRecord) and stored.lacks(record):
                rows.setdefault(_SUBMISSIONS, []).append(submission_row(record.task_id, record.spec))
                rows.setdefault(_BLOBS, []).extend(blob_rows(record.task_id, record.spec))
        dropped += [{"dropped_task": task_id, "dropped_round": number} for task_id, number in change.dropped]
    for table, values in rows.items():
        connection.execute(_INSERTS[table], values)
    if dropped:
        connection.execute(_DROP_CHECKPOINT, dropped)


def _insert(table: Table) -> Insert:
    """Return the statement that saves rows: feeds append, a blob reference is kept once, all else replaces."""
    statement = insert(table)
    if table in _APPENDED:
        return statement
    key = {column.name for column in table.primary_key}
    changes: Mapping[str, Any] = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in key}
    if table is _BLOBS:
        return statement.on_conflict_do_nothing(index_elements=list(table.primary_key))
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)


_INSERTS: Final = {
    table: _insert(table) for table in (*(mapper.table for mapper in MAPPERS.values()), _SUBMISSIONS, _BLOBS)
}
_DROP_CHECKPOINT: Final = delete(CHECKPOINTS.table).where(
    CHECKPOINTS.table.c.task_id == bindparam("dropped_task"),
    CHECKPOINTS.table.c.round == bindparam("dropped_round"),
)
