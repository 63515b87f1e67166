"""The ledger's own name, by which the blobs beside it are matched to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "identity",
        sa.Column("ledger_id", sa.String(), nullable=False),
        sa.Column("starts", WHOLE, nullable=False, autoincrement=False),
        sa.PrimaryKeyConstraint("ledger_id"),
    )
