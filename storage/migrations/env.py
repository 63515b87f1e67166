"""Run by Alembic. The connection and its transaction come from ``storage.upgrade``; there is no offline mode."""

from __future__ import annotations

from alembic import context

from storage.tables import TaskRow

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=TaskRow.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
