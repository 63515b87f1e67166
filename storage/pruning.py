"""What may leave the ledger: a task's history row by row, oldest first, and at last the task itself.

A task's history can be millions of rows, and one thread writes: each step removes no more than it can in a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, delete, func, select

from storage.mapping import ASSIGNMENTS, CHECKPOINTS, EVENTS, FAILED_ITEMS, LOGS, METRICS, ROUNDS, TASKS
from storage.ports.ledger import History
from storage.tables import BlobRow, SubmissionRow, table_of

STEP_ROWS: Final = 5000
"""Removed in one transaction, or thereabouts."""


_TABLES: Final[dict[History, tuple[Table, str]]] = {
    History.LOGS: (LOGS.table, "seq"),
    History.METRICS: (METRICS.table, "seq"),
    History.EVENTS: (EVENTS.table, "seq"),
    History.ASSIGNMENTS: (ASSIGNMENTS.table, "round"),
    History.ROUNDS: (ROUNDS.table, "number"),
}
"""Each one's table, and the column in whose order it goes."""
_REST: Final = (CHECKPOINTS.table, FAILED_ITEMS.table, table_of(BlobRow), table_of(SubmissionRow), TASKS.table)


@dataclass(frozen=True, slots=True)
class Pruned:
    """Rows of one task's history up to a number, which go."""

    history: History
    task_id: str
    upto: int


def numbers_of(history: History, task_id: str) -> Select[Any]:
    """Select the numbers by which a task's history is ordered, in no order."""
    table, column = _TABLES[history]
    return select(table.c[column]).where(table.c.task_id == task_id)


def beyond(history: History, task_id: str, keep: int) -> Select[Any]:
    """Select the number of the newest row that is one too many, where the newest ``keep`` stay."""
    table, column = _TABLES[history]
    return numbers_of(history, task_id).order_by(table.c[column].desc()).limit(1).offset(keep)


def next_step(history: History, task_id: str, upto: int) -> Select[Any]:
    """Select the number up to which the next step may remove, None if nothing is left."""
    table, column = _TABLES[history]
    oldest = numbers_of(history, task_id).where(table.c[column] <= upto).order_by(table.c[column]).limit(STEP_ROWS)
    return select(func.max(oldest.subquery().c[column]))


def count_upto(history: History, task_id: str, upto: int) -> Select[Any]:
    """Select how many rows a removal up to a number would take."""
    table, column = _TABLES[history]
    return select(func.count()).where(table.c.task_id == task_id, table.c[column] <= upto)


def prune(connection: Connection, pruned: Pruned) -> None:
    """Remove the rows."""
    table, column = _TABLES[pruned.history]
    connection.execute(delete(table).where(table.c.task_id == pruned.task_id, table.c[column] <= pruned.upto))


def remove_task(connection: Connection, task_id: str) -> None:
    """Remove what is left of a task whose history is gone."""
    for table in (*(table for table, _ in _TABLES.values()), *_REST):
        connection.execute(delete(table).where(table.c.task_id == task_id))
