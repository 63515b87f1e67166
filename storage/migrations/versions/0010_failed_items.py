"""Items of maps that end executors: they have no output, and their maps go on without it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("items_failed", WHOLE, nullable=False, server_default="0"))
    op.create_table(
        "failed_items",
        sa.Column("task_id", sa.String(), primary_key=True),
        sa.Column("position", WHOLE, primary_key=True, autoincrement=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("clients", sa.JSON(), nullable=False),
    )
