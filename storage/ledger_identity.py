"""Which ledger a file is: a random name that it keeps for ever, and how often a server has started on it."""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, text

from storage.engine import LOCK_WAIT_SECONDS
from storage.ports.ledger import LedgerIdentity
from storage.sqlite import SQLITE

_ID_BYTES: Final = 16


def begin_run(engine: Engine) -> LedgerIdentity:
    """Count a start in an up-to-date ledger, and give it its name at the first one. Raises: SQLAlchemyError."""
    with engine.begin() as connection:
        row = connection.execute(text("SELECT ledger_id, starts FROM identity")).first()
        if row is None:
            identity = LedgerIdentity(secrets.token_hex(_ID_BYTES), 1)
            statement = "INSERT INTO identity (ledger_id, starts) VALUES (:ledger_id, :starts)"
        else:
            identity = LedgerIdentity(row.ledger_id, row.starts + 1)
            statement = "UPDATE identity SET starts = :starts WHERE ledger_id = :ledger_id"
        connection.execute(text(statement), {"ledger_id": identity.ledger_id, "starts": identity.starts})
    return identity


def is_blank(path: Path) -> bool:
    """Whether no ledger is there: no file, or one without a table. A file that can't be read is no blank one."""
    if not path.exists():
        return True
    try:
        return SQLITE.is_blank(path, LOCK_WAIT_SECONDS)
    except SQLITE.error:
        return False


def identity_of(path: Path) -> LedgerIdentity | None:
    """Return what a ledger's file says it is, without changing it; None if it has no name (yet), or can't be read."""
    try:
        with closing(SQLITE.read_only(path, LOCK_WAIT_SECONDS)) as connection:
            row = connection.execute("SELECT ledger_id, starts FROM identity").fetchone()
    except SQLITE.error:
        return None
    return LedgerIdentity(*row) if row else None
