"""What a task's ends of epochs left: how far they are, how much is kept, and why the newest failed one did."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("epochs_ended", WHOLE, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("epoch_end_error", sa.String(), nullable=True))
    op.add_column("tasks", sa.Column("artefact_files", WHOLE, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("artefact_bytes", WHOLE, nullable=False, server_default="0"))
