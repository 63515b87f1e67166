"""Looking after a ledger's file: copied while it is in use, checked from end to end, shrunk while nobody uses it."""

from __future__ import annotations

import os
from pathlib import Path

from protocol.errors import Unavailable
from storage.engine import LOCK_WAIT_SECONDS
from storage.errors import ledger_error
from storage.sqlite import SQLITE


def copy_ledger(source: Path, target: Path) -> None:
    """Copy the ledger as of one moment, while others write; durable on return. Raises: Unavailable; OSError."""
    target.unlink(missing_ok=True)
    try:
        SQLITE.copy(source, target, LOCK_WAIT_SECONDS)
    except SQLITE.error as error:
        raise Unavailable(f"the ledger {source} can't be copied: {error}; run `farm-server doctor`") from error
    with target.open("rb") as copied:
        os.fsync(copied.fileno())


def shrink_ledger(path: Path) -> None:
    """Give the room of removed rows back to the disk. Raises: Unavailable; DamagedLedger; StorageError."""
    try:
        SQLITE.shrink(path)
    except SQLITE.error as error:
        raise ledger_error(path, error) from error


def ledger_damage(path: Path) -> str | None:
    """Read all of the file; say what is wrong with it, or return None. Raises: as ``shrink_ledger``."""
    try:
        return SQLITE.check(path, LOCK_WAIT_SECONDS)
    except SQLITE.error as error:
        raise ledger_error(path, error) from error
