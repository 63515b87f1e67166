"""The ledger's tables. One row per record of ``coordinator.records``; ``storage.mapping`` turns one into the other.

There are no foreign keys: the coordinator is the only writer and saves what belongs together in one transaction,
and a log line must not be refused because its client's row is in the same group commit, further down.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Index, Integer, Table, text
from sqlmodel import Field, SQLModel

WHOLE: Final = BigInteger().with_variant(Integer, "sqlite")
"""64-bit integers: sizes, counts and sequence numbers. SQLite numbers rows by itself only as plain INTEGER."""


class ClientRow(SQLModel, table=True):
    """A ``ClientRecord``."""

    __tablename__ = "clients"

    client_id: str = Field(primary_key=True)
    name: str
    secret_hash: str
    first_seen: float
    last_seen: float
    incarnation: int = Field(sa_type=WHOLE)
    resources: dict[str, Any] = Field(sa_type=JSON)
    tags: list[str] = Field(sa_type=JSON)
    delivered: int = Field(sa_type=WHOLE)
    failed: int = Field(sa_type=WHOLE)
    sandbox: dict[str, Any] = Field(sa_type=JSON, sa_column_kwargs={"server_default": "{}"})
    team: str = Field(sa_column_kwargs={"server_default": ""})


class TaskRow(SQLModel, table=True):
    """A ``TaskRecord`` without its specification: what changes each round."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ux_tasks_submit_token", "submit_token", unique=True),
        Index("ix_tasks_state", "state", "finished_at"),
        Index("ix_tasks_created", "created_at", "task_id"),
    )

    task_id: str = Field(primary_key=True)
    submit_token: str | None
    state: str
    created_at: float
    reason: str
    error: str | None
    version: int = Field(sa_type=WHOLE)
    epoch: int = Field(sa_type=WHOLE)
    cursor: int = Field(sa_type=WHOLE)
    leftover: list[list[int]] = Field(sa_type=JSON)
    retries: int = Field(sa_type=WHOLE)
    not_before: float
    served_at: float
    started_at: float | None
    finished_at: float | None
    samples_done: int = Field(sa_type=WHOLE)
    loss: float | None
    metrics: dict[str, float] = Field(sa_type=JSON)
    priority_set: int | None = Field(sa_type=WHOLE)
    best_value: float | None
    stale_evaluations: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})
    stopped: str | None
    epochs_ended: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})
    epoch_end_error: str | None
    artefact_files: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})
    artefact_bytes: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})
    items_failed: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})


class SubmissionRow(SQLModel, table=True):
    """A task's specification, in a table of its own: it may be large, and is written once rather than each round."""

    __tablename__ = "submissions"

    task_id: str = Field(primary_key=True)
    spec: dict[str, Any] = Field(sa_type=JSON)


class BlobRow(SQLModel, table=True):
    """A blob that a task needs. ``role``: of its submission, code, initial_weights, frozen, base or shard.

    Or it is a ``FailedStepRecord``, and the role ``failed_step:`` and its line; or an ``ArtefactRecord``, and the role
    ``artefact:``, its epoch, a colon and its name; or an ``OutputRecord``, and the role ``output:``, its position in 16
    digits, a colon and its items.
    """

    __tablename__ = "blobs"

    task_id: str = Field(primary_key=True)
    role: str = Field(primary_key=True)
    digest: str = Field(primary_key=True)
    size_bytes: int = Field(sa_type=WHOLE)


class FailedItemRow(SQLModel, table=True):
    """A ``FailedItemRecord``."""

    __tablename__ = "failed_items"

    task_id: str = Field(primary_key=True)
    position: int = Field(primary_key=True, sa_type=WHOLE, sa_column_kwargs={"autoincrement": False})
    error: str
    clients: list[str] = Field(sa_type=JSON)


OPEN_ROUND: Final = text("state = 'open'")
"""``RoundState.OPEN``, word for word as a partial index has it: a query must say it so to be answered from there."""


class RoundRow(SQLModel, table=True):
    """A ``RoundRecord``."""

    __tablename__ = "rounds"
    __table_args__ = (Index("ix_rounds_open", "task_id", sqlite_where=OPEN_ROUND, postgresql_where=OPEN_ROUND),)

    task_id: str = Field(primary_key=True)
    number: int = Field(primary_key=True, sa_type=WHOLE, sa_column_kwargs={"autoincrement": False})
    state: str
    attempt: int = Field(sa_type=WHOLE)
    epoch: int = Field(sa_type=WHOLE)
    cursor: int = Field(sa_type=WHOLE)
    samples: int = Field(sa_type=WHOLE)
    opened_at: float
    clients: int = Field(sa_type=WHOLE)
    committed_at: float | None
    loss: float | None
    metrics: dict[str, float] = Field(sa_type=JSON)


HELD_ASSIGNMENT: Final = text("state IN ('offered', 'accepted', 'running')")
"""``lifecycle.HELD``, word for word as a partial index has it."""


class AssignmentRow(SQLModel, table=True):
    """An ``AssignmentRecord``."""

    __tablename__ = "assignments"
    __table_args__ = (
        Index("ix_assignments_task_round", "task_id", "round", "position"),
        Index("ix_assignments_fence", "fence"),
        Index("ix_assignments_held", "task_id", sqlite_where=HELD_ASSIGNMENT, postgresql_where=HELD_ASSIGNMENT),
    )

    assignment_id: str = Field(primary_key=True)
    task_id: str
    round: int = Field(sa_type=WHOLE)
    attempt: int = Field(sa_type=WHOLE)
    kind: str
    epoch: int = Field(sa_type=WHOLE)
    client_id: str
    incarnation: int = Field(sa_type=WHOLE)
    fence: int = Field(sa_type=WHOLE)
    state: str
    ranges: list[list[int]] = Field(sa_type=JSON)
    position: int = Field(sa_type=WHOLE)
    samples: int = Field(sa_type=WHOLE)
    offered_at: float
    expires_at: float
    delivered_at: float | None
    counted: bool
    counted_in: int | None = Field(sa_type=WHOLE)
    update_digest: str | None
    update_bytes: int | None = Field(sa_type=WHOLE)
    metrics: dict[str, float] = Field(sa_type=JSON)
    error: str | None
    team: str = Field(sa_column_kwargs={"server_default": ""})
    flops_per_sample: int = Field(sa_type=WHOLE, sa_column_kwargs={"server_default": "0"})


class CheckpointRow(SQLModel, table=True):
    """A ``CheckpointRecord``."""

    __tablename__ = "checkpoints"

    task_id: str = Field(primary_key=True)
    round: int = Field(primary_key=True, sa_type=WHOLE, sa_column_kwargs={"autoincrement": False})
    epoch: int = Field(sa_type=WHOLE)
    cursor: int = Field(sa_type=WHOLE)
    leftover: list[list[int]] = Field(sa_type=JSON)
    weights_digest: str
    weights_bytes: int = Field(sa_type=WHOLE)
    optimizer_digest: str | None
    optimizer_bytes: int | None = Field(sa_type=WHOLE)
    manifest_digest: str | None
    manifest_bytes: int | None = Field(sa_type=WHOLE)
    created_at: float
    metrics: dict[str, float] = Field(sa_type=JSON)
    inner_state_digest: str | None
    inner_state_bytes: int | None = Field(sa_type=WHOLE)


class EventRow(SQLModel, table=True):
    """An ``EventRecord``; ``seq`` only grows, and is never used again."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_task_seq", "task_id", "seq"), {"sqlite_autoincrement": True})

    seq: int | None = Field(default=None, primary_key=True, sa_type=WHOLE)
    at: float
    kind: str
    message: str
    task_id: str | None
    client_id: str | None
    round: int | None = Field(sa_type=WHOLE)
    data: dict[str, Any] = Field(sa_type=JSON)


class MetricRow(SQLModel, table=True):
    """A ``MetricRecord``. ``value`` is NULL for "not a number", which SQLite cannot keep otherwise."""

    __tablename__ = "metrics"
    __table_args__ = (Index("ix_metrics_task_seq", "task_id", "seq"), {"sqlite_autoincrement": True})

    seq: int | None = Field(default=None, primary_key=True, sa_type=WHOLE)
    at: float
    task_id: str
    round: int = Field(sa_type=WHOLE)
    step: int = Field(sa_type=WHOLE)
    name: str
    value: float | None
    source: str
    client_id: str | None


class LogRow(SQLModel, table=True):
    """A ``LogRecord``."""

    __tablename__ = "logs"
    __table_args__ = (Index("ix_logs_task_seq", "task_id", "seq"), {"sqlite_autoincrement": True})

    seq: int | None = Field(default=None, primary_key=True, sa_type=WHOLE)
    at: float
    task_id: str
    client_id: str
    client_name: str
    round: int = Field(sa_type=WHOLE)
    stream: str
    text: str


class CreditRow(SQLModel, table=True):
    """The sum of all ``CreditEntry`` of one key. No removal of a task or a client takes it away."""

    __tablename__ = "credits"
    __table_args__ = (Index("ix_credits_day", "day"), Index("ix_credits_task", "task_id"))

    client_id: str = Field(primary_key=True)
    team: str = Field(primary_key=True)
    task_id: str = Field(primary_key=True)
    day: int = Field(primary_key=True, sa_type=WHOLE, sa_column_kwargs={"autoincrement": False})
    assignments: int = Field(sa_type=WHOLE)
    samples: int = Field(sa_type=WHOLE)
    measured_samples: int = Field(sa_type=WHOLE)
    gigaflops: int = Field(sa_type=WHOLE)
    flops: int = Field(sa_type=WHOLE)


class IdentityRow(SQLModel, table=True):
    """The ledger itself: one row. The blobs beside it know it by ``ledger_id`` (``storage.owner``)."""

    __tablename__ = "identity"

    ledger_id: str = Field(primary_key=True)
    starts: int = Field(sa_type=WHOLE)


def table_of(row: type[SQLModel]) -> Table:
    """Return the table of one of this module's classes, for statements that build no row objects."""
    return SQLModel.metadata.tables[str(row.__tablename__)]
