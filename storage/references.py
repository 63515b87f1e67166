"""Which blobs are still needed: the ledger's half of garbage collection, as one query.

A task's submission keeps its initial and its frozen weights and its base for ever, and its code and shards while it may
train (FAILED may be retried) and for a while after that (it may be continued). Failed steps and artefacts are kept for
as long as their task. A checkpoint keeps its blobs until it is dropped. An update is kept until its round is decided.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, or_, select, tuple_, union

from coordinator.lifecycle import ACTIVE, TaskState
from storage.mapping import ASSIGNMENTS, CHECKPOINTS, KEPT_ROLES, LEFT_BY_TASKS, ROUNDS, TASKS
from storage.tables import OPEN_ROUND, BlobRow, table_of

ENDED_SINCE: Final = "ended_since"
NEVER: Final = 1e18
"""Seconds, later than any end."""

_blobs: Final = table_of(BlobRow)
_tasks, _rounds, _assignments, _checkpoints = TASKS.table, ROUNDS.table, ASSIGNMENTS.table, CHECKPOINTS.table
_MAY_TRAIN: Final = sorted(ACTIVE | {TaskState.FAILED})

_of_submissions: Final = (
    select(_blobs.c.digest)
    .join(_tasks, _tasks.c.task_id == _blobs.c.task_id)
    .where(
        or_(
            _blobs.c.role.in_(KEPT_ROLES),
            *(_blobs.c.role.startswith(left, autoescape=True) for left in LEFT_BY_TASKS),
            _tasks.c.state.in_(_MAY_TRAIN),
            _tasks.c.finished_at >= bindparam(ENDED_SINCE, NEVER),
        )
    )
)
_of_checkpoints: Final = [
    select(column.label("digest")).where(column.is_not(None))
    for column in (_checkpoints.c[digest] for _, digest, _ in CHECKPOINTS.blobs)
]
_open_rounds: Final = select(_rounds.c.task_id, _rounds.c.number, _rounds.c.attempt).where(OPEN_ROUND)
_of_updates: Final = (
    select(_assignments.c.update_digest.label("digest"))
    .where(_assignments.c.update_digest.is_not(None), _assignments.c.counted.is_(False))
    .where(tuple_(_assignments.c.task_id, _assignments.c.round, _assignments.c.attempt).in_(_open_rounds))
)

NEEDED: Final = union(_of_submissions, *_of_checkpoints, _of_updates)
"""Selects ``digest``: the name of every blob that something kept refers to. Bind ``ENDED_SINCE`` to count code and
shards of the tasks that ended at that time or later."""
