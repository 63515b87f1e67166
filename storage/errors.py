"""What can go wrong with the ledger and the blobs, each with the sentence that says what to do.

FarmError
├── StorageError
│   ├── NewerLedger      a later version of the farm wrote this ledger
│   ├── DamagedLedger    the file is not a ledger, or is no longer one
│   ├── BadRecord        a record that the ledger cannot hold
│   └── BlobTooLarge     more bytes than the receiver allowed
├── Conflict             two tasks with one submit token
└── Unavailable          a locked, full, unwritable or failing disk; nothing acknowledged is lost
"""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import ClassVar

from sqlalchemy.exc import DBAPIError, IntegrityError

from protocol.errors import Conflict, FarmError, Unavailable


class StorageError(FarmError):
    """The farm's data folder cannot serve this request."""

    code: ClassVar[str] = "storage_error"


class NewerLedger(StorageError):
    """A newer version of the farm wrote this ledger; upgrade the server."""

    code: ClassVar[str] = "newer_ledger"


class DamagedLedger(StorageError):
    """The ledger's file is damaged; restore it from a backup."""

    code: ClassVar[str] = "damaged_ledger"


class BadRecord(StorageError):
    """The ledger cannot hold this record."""

    code: ClassVar[str] = "bad_record"


class BlobTooLarge(StorageError):
    """The blob is larger than the server accepts."""

    code: ClassVar[str] = "blob_too_large"


_DISK_SAYS = {
    errno.ENOSPC: "no space is left on its disk; free some and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EROFS: "it is on a read-only file system; remount it writable",
    errno.EACCES: "this user may not write there; change its owner or permissions",
    errno.EPERM: "this user may not write there; change its owner or permissions",
}

_SQLITE_SAYS = {
    "SQLITE_FULL": _DISK_SAYS[errno.ENOSPC],
    "SQLITE_READONLY": "the file or its folder is read-only; make both writable",
    "SQLITE_BUSY": "another program keeps it locked; stop that program and try again",
    "SQLITE_LOCKED": "another program keeps it locked; stop that program and try again",
    "SQLITE_CANTOPEN": "it cannot be opened; check that its folder exists and is writable",
    "SQLITE_IOERR": "reading or writing its file failed; check the disk's health and free space",
    "SQLITE_NOMEM": "the server is out of memory; free some and try again",
}
_SQLITE_DAMAGE = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})


def disk_error(path: Path, error: OSError) -> Unavailable:
    """Say what the operating system's refusal means for the blob folder at ``path``."""
    why = _DISK_SAYS.get(error.errno or 0, f"the disk says: {error.strerror or error}")
    return Unavailable(f"cannot write to {path}: {why}")


def ledger_error(path: Path, error: Exception) -> FarmError:
    """Say what a database driver's error means for the ledger at ``path``."""
    if isinstance(error, FarmError):
        return error
    if isinstance(error, IntegrityError):
        return _integrity_error(error)
    name = _sqlite_name(error)
    if name in _SQLITE_DAMAGE:
        return DamagedLedger(f"{path} is not an intact ledger ({error.args[0]}); restore it from a backup")
    if name in _SQLITE_SAYS:
        return Unavailable(f"cannot use the ledger {path}: {_SQLITE_SAYS[name]}")
    return BadRecord(f"the ledger cannot hold this record ({type(error).__name__}: {error}); correct it and try again")


def _integrity_error(error: IntegrityError) -> FarmError:
    if "tasks.submit_token" in str(error.orig):
        return Conflict("another task has this submit token already; ask for that task instead")
    return BadRecord(f"the ledger cannot hold this record ({error.orig}); correct it and try again")


def _sqlite_name(error: Exception) -> str | None:
    """Return SQLite's primary result code by name: ``SQLITE_IOERR_FSYNC`` counts as ``SQLITE_IOERR``."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, sqlite3.Error):
        return None
    return "_".join(getattr(cause, "sqlite_errorname", "").split("_")[:2])
