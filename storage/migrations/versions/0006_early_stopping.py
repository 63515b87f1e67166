"""Why a task stopped before its recipe ended, and what that is judged by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("best_value", sa.Float(), nullable=True))
    op.add_column("tasks", sa.Column("stale_evaluations", WHOLE, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("stopped", sa.String(), nullable=True))
