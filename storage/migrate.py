"""See that a ledger has this version's schema when it is opened."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

NEWEST: Final = "0010"
"""The newest migration in ``storage/migrations``."""


def migrate(engine: Engine) -> None:
    """Upgrade the ledger to the newest schema, unless it has it; a new file gets it whole.

    Raises: NewerLedger if a later version of the farm wrote it. Nothing is changed then.
    """
    with engine.begin() as connection:
        if current_revision(connection) == NEWEST:
            return
    from storage.upgrade import upgrade  # noqa: PLC0415  # Alembic's import would be a tenth of a server's restart

    upgrade(engine)


def current_revision(connection: Connection) -> str | None:
    """Return the schema revision that the ledger is at, or None for a new file."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision
