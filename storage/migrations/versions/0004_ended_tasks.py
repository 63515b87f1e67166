"""Indexes with which a start costs the same however many tasks have ended, and tasks are listed in pages."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_tasks_state", "tasks", ["state", "finished_at"])
    op.create_index("ix_tasks_created", "tasks", ["created_at", "task_id"])
    op.create_index("ix_assignments_fence", "assignments", ["fence"])
