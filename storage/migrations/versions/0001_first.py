"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
HELD = sa.text("state IN ('offered', 'accepted', 'running')")
OPEN = sa.text("state = 'open'")


def upgrade() -> None:
    _create_clients()
    _create_tasks()
    _create_rounds()
    _create_assignments()
    _create_checkpoints()
    _create_feeds()


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(), nullable=null)


def _whole(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, WHOLE, nullable=null, autoincrement=False)


def _real(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Float(), nullable=null)


def _json(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(), nullable=False)


def _create_clients() -> None:
    op.create_table(
        "clients",
        _text("client_id"),
        _text("name"),
        _text("secret_hash"),
        _real("first_seen"),
        _real("last_seen"),
        _whole("incarnation"),
        _json("resources"),
        _json("tags"),
        _whole("delivered"),
        _whole("failed"),
        sa.PrimaryKeyConstraint("client_id"),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        _text("task_id"),
        _text("submit_token", null=True),
        _text("state"),
        _real("created_at"),
        _text("reason"),
        _text("error", null=True),
        _whole("version"),
        _whole("epoch"),
        _whole("cursor"),
        _json("leftover"),
        _whole("retries"),
        _real("not_before"),
        _real("served_at"),
        _real("started_at", null=True),
        _real("finished_at", null=True),
        _whole("samples_done"),
        _real("loss", null=True),
        _json("metrics"),
        sa.PrimaryKeyConstraint("task_id"),
    )
    op.create_index("ux_tasks_submit_token", "tasks", ["submit_token"], unique=True)
    op.create_table("submissions", _text("task_id"), _json("spec"), sa.PrimaryKeyConstraint("task_id"))
    op.create_table(
        "blobs",
        _text("task_id"),
        _text("role"),
        _text("digest"),
        _whole("size_bytes"),
        sa.PrimaryKeyConstraint("task_id", "role", "digest"),
    )


def _create_rounds() -> None:
    op.create_table(
        "rounds",
        _text("task_id"),
        _whole("number"),
        _text("state"),
        _whole("attempt"),
        _whole("epoch"),
        _whole("cursor"),
        _whole("samples"),
        _real("opened_at"),
        _whole("clients"),
        _real("committed_at", null=True),
        _real("loss", null=True),
        _json("metrics"),
        sa.PrimaryKeyConstraint("task_id", "number"),
    )
    op.create_index("ix_rounds_open", "rounds", ["task_id"], sqlite_where=OPEN, postgresql_where=OPEN)


def _create_assignments() -> None:
    op.create_table(
        "assignments",
        _text("assignment_id"),
        _text("task_id"),
        _whole("round"),
        _whole("attempt"),
        _text("kind"),
        _whole("epoch"),
        _text("client_id"),
        _whole("incarnation"),
        _whole("fence"),
        _text("state"),
        _json("ranges"),
        _whole("position"),
        _whole("samples"),
        _real("offered_at"),
        _real("expires_at"),
        _real("delivered_at", null=True),
        sa.Column("counted", sa.Boolean(), nullable=False),
        _whole("counted_in", null=True),
        _text("update_digest", null=True),
        _whole("update_bytes", null=True),
        _json("metrics"),
        _text("error", null=True),
        sa.PrimaryKeyConstraint("assignment_id"),
    )
    op.create_index("ix_assignments_task_round", "assignments", ["task_id", "round", "position"])
    op.create_index("ix_assignments_held", "assignments", ["task_id"], sqlite_where=HELD, postgresql_where=HELD)


def _create_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        _text("task_id"),
        _whole("round"),
        _whole("epoch"),
        _whole("cursor"),
        _json("leftover"),
        _text("weights_digest"),
        _whole("weights_bytes"),
        _text("optimizer_digest", null=True),
        _whole("optimizer_bytes", null=True),
        _text("manifest_digest", null=True),
        _whole("manifest_bytes", null=True),
        _real("created_at"),
        _json("metrics"),
        sa.PrimaryKeyConstraint("task_id", "round"),
    )


def _create_feed(name: str, *columns: sa.Column[Any]) -> None:
    """Create a table that is appended to and read by task, in order of ``seq``."""
    seq = sa.Column("seq", WHOLE, nullable=False)
    op.create_table(name, seq, _real("at"), *columns, sa.PrimaryKeyConstraint("seq"), sqlite_autoincrement=True)
    op.create_index(f"ix_{name}_task_seq", name, ["task_id", "seq"])


def _create_feeds() -> None:
    _create_feed(
        "events",
        _text("kind"),
        _text("message"),
        _text("task_id", null=True),
        _text("client_id", null=True),
        _whole("round", null=True),
        _json("data"),
    )
    _create_feed(
        "metrics",
        _text("task_id"),
        _whole("round"),
        _whole("step"),
        _text("name"),
        _real("value", null=True),
        _text("source"),
        _text("client_id", null=True),
    )
    _create_feed(
        "logs",
        _text("task_id"),
        _text("client_id"),
        _text("client_name"),
        _whole("round"),
        _text("stream"),
        _text("text"),
    )
