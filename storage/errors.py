"""What can go wrong with the ledger and the blobs, each with a sentence on what to do.

FarmError
├── StorageError
│   ├── NewerLedger      a later version of the farm wrote this ledger
│   ├── DamagedLedger    the file is not a ledger, or is no longer one
│   ├── LostLedger       the blobs belong to a ledger that is not there
│   ├── BadRecord        a record that the ledger cannot hold
│   └── BlobTooLarge     more bytes than the receiver allowed
├── Conflict             two tasks with one submit token
│   └── NoUpload         a part of an upload that is not open
└── Unavailable          a locked, full, unwritable or failing disk; nothing acknowledged is lost
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final

from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from protocol.errors import Conflict, FarmError, Unavailable
from protocol.retry import RetryPolicy
from storage.sqlite import SQLITE


class StorageError(FarmError):
    """The farm's data folder cannot serve this request."""

    code: ClassVar[str] = "storage_error"


class NewerLedger(StorageError):
    """A newer version of the farm wrote this ledger; upgrade the server."""

    code: ClassVar[str] = "newer_ledger"


class DamagedLedger(StorageError):
    """The ledger's file is damaged; restore it from a backup."""

    code: ClassVar[str] = "damaged_ledger"


class LostLedger(StorageError):
    """The blobs belong to a ledger that is not there; put it back, or restore a backup."""

    code: ClassVar[str] = "lost_ledger"


class BadRecord(StorageError):
    """The ledger cannot hold this record."""

    code: ClassVar[str] = "bad_record"


class BlobTooLarge(StorageError):
    """The blob is larger than the server accepts."""

    code: ClassVar[str] = "blob_too_large"


class NoUpload(Conflict):
    """No such upload is open; ask the farm for its turn, and what is missing, by POST first."""

    code: ClassVar[str] = "no_upload"


DISK_RETRY: Final = RetryPolicy(first_seconds=1.0, longest_seconds=1.0)
"""How often a disk that refuses is tried again: an operator makes room, and nothing else can be done meanwhile."""

_DISK_SAYS = {
    errno.ENOSPC: "no space is left on its disk; free some and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EROFS: "it is on a read-only file system; remount it writable",
    errno.EACCES: "this user may not write there; change its owner or permissions",
    errno.EPERM: "this user may not write there; change its owner or permissions",
}

_ADVICE: Final = SQLITE.advice | {result: _DISK_SAYS[number] for result, number in SQLITE.refusals.items()}


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals within into Unavailable, saying what to do about ``folder``."""
    try:
        yield
    except OSError as error:
        why = _DISK_SAYS.get(error.errno or 0, f"the disk says: {error.strerror or error}; check its health")
        raise Unavailable(f"cannot use {folder}: {why}") from error


def ledger_error(path: Path, error: Exception) -> FarmError:
    """Return what a failure of the ledger at ``path`` means, whatever was done with it."""
    name = _result(error)
    if name in SQLITE.damage:
        said: FarmError = DamagedLedger(f"{path} is not an intact ledger ({_cause(error)}); restore it from a backup")
    elif name in _ADVICE:
        said = Unavailable(f"cannot use the ledger {path}: {_ADVICE[name]}")
    else:
        said = StorageError(f"the ledger {path} failed ({_cause(error)}); run `farm-server doctor`")
    said.__cause__ = error
    return said


def concerns_every_change(error: Exception) -> bool:
    """Whether the disk, a lock or damage is at fault, rather than the change that met it."""
    return isinstance(error, OperationalError) or _result(error) in SQLITE.damage


def write_error(error: Exception) -> FarmError:
    """Return why one change cannot be written while others can."""
    if isinstance(error, IntegrityError) and "tasks.submit_token" in str(error.orig):
        said: FarmError = Conflict("another task has this submit token already; ask for that task instead")
    else:
        said = BadRecord(f"the ledger cannot hold this record ({_cause(error)}); correct it and try again")
    said.__cause__ = error
    return said


def _cause(error: Exception) -> str:
    cause = error.orig if isinstance(error, StatementError) else error
    return f"{type(cause).__name__}: {cause}"


def _result(error: Exception) -> str:
    return SQLITE.result_code(error.orig if isinstance(error, StatementError) else error)
