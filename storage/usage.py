"""Disk usage by task: bytes of blobs and rows of history, as queries of the ledger."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select, union

from storage.mapping import ASSIGNMENTS, CHECKPOINTS, EVENTS, LOGS, METRICS, TASKS
from storage.tables import BlobRow, table_of

_blobs, _checkpoints = table_of(BlobRow), CHECKPOINTS.table
_named = union(
    select(_blobs.c.task_id, _blobs.c.digest, _blobs.c.size_bytes),
    *(
        select(_checkpoints.c.task_id, digest, size).where(digest.is_not(None))
        for digest, size in ((_checkpoints.c[digest], _checkpoints.c[size]) for _, digest, size in CHECKPOINTS.blobs)
    ),
).subquery()

BLOB_BYTES: Final = select(_named.c.task_id, func.sum(_named.c.size_bytes).label("amount")).group_by(_named.c.task_id)
"""What each task's submission and kept checkpoints name; a blob that two tasks name counts for both."""
ROWS: Final = tuple(
    select(table.c.task_id, func.count().label("amount")).group_by(table.c.task_id)
    for table in (LOGS.table, METRICS.table, EVENTS.table, ASSIGNMENTS.table)
)
TASK_ENDS: Final = select(TASKS.table.c.task_id, TASKS.table.c.state, TASKS.table.c.finished_at)
