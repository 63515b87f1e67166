"""The inner optimizer's state, which a checkpoint may carry."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("inner_state_digest", sa.String(), nullable=True))
    op.add_column("checkpoints", sa.Column("inner_state_bytes", WHOLE, nullable=True))
