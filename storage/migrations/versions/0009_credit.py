"""What clients' counted work is worth. The books begin with what the ledger still has of it, of unknown FLOPs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SUMS = ("assignments", "samples", "measured_samples", "gigaflops", "flops")


def upgrade() -> None:
    op.add_column("clients", sa.Column("team", sa.String(), nullable=False, server_default=""))
    op.add_column("assignments", sa.Column("team", sa.String(), nullable=False, server_default=""))
    op.add_column("assignments", sa.Column("flops_per_sample", WHOLE, nullable=False, server_default="0"))
    op.create_table(
        "credits",
        sa.Column("client_id", sa.String(), primary_key=True),
        sa.Column("team", sa.String(), primary_key=True),
        sa.Column("task_id", sa.String(), primary_key=True),
        sa.Column("day", WHOLE, primary_key=True, autoincrement=False),
        *(sa.Column(name, WHOLE, nullable=False) for name in _SUMS),
    )
    op.create_index("ix_credits_day", "credits", ["day"])
    op.create_index("ix_credits_task", "credits", ["task_id"])
    op.execute(
        """
        INSERT INTO credits (client_id, team, task_id, day, assignments, samples, measured_samples, gigaflops, flops)
        SELECT client_id, '', task_id, CAST(COALESCE(delivered_at, offered_at) / 86400 AS INTEGER) AS day,
               COUNT(*), SUM(samples), 0, 0, 0
        FROM assignments WHERE counted AND kind = 'train' GROUP BY client_id, task_id, day
        """
    )
