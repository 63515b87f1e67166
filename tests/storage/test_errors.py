"""Each refusal of disk and database says what to do about it, and blames a record only where the record is at fault."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, OperationalError, StatementError

from protocol.errors import Conflict, FarmError, Unavailable
from storage import errors
from storage.errors import (
    BadRecord,
    BlobTooLarge,
    DamagedLedger,
    LostLedger,
    NewerLedger,
    NoUpload,
    StorageError,
    concerns_every_change,
    disk_errors,
    ledger_error,
    write_error,
)

LEDGER = Path("/data/farm.db")


def sqlite_failure(name: str, said: str = "it failed", kind: type[DBAPIError] = OperationalError) -> DBAPIError:
    """Make the error that SQLAlchemy raises where SQLite answers with this code."""
    cause = sqlite3.OperationalError(said)
    cause.sqlite_errorname = name
    return kind("INSERT …", {}, cause)


class TestDiskErrors:
    """Around what touches the disk."""

    @pytest.mark.parametrize(
        ("number", "advice"),
        [
            (errno.ENOSPC, "free some and try again"),
            (errno.EDQUOT, "quota is used up"),
            (errno.EROFS, "remount it writable"),
            (errno.EACCES, "change its owner or permissions"),
            (errno.EPERM, "change its owner or permissions"),
            (errno.EIO, "Input/output error; check its health"),
        ],
    )
    def test_say_where_and_what_to_do(self, number: int, advice: str) -> None:
        with (
            pytest.raises(Unavailable, match=f"cannot use /data/blobs: .*{advice}") as raised,
            disk_errors(Path("/data/blobs")),
        ):
            raise OSError(number, os.strerror(number))
        assert isinstance(raised.value.__cause__, OSError)

    @pytest.mark.parametrize("error", [OSError("odd"), OSError()], ids=["a text", "nothing"])
    def test_one_without_a_number_is_explained_as_far_as_it_goes(self, error: OSError) -> None:
        with pytest.raises(Unavailable, match="check its health"), disk_errors(Path("/data")):
            raise error

    @pytest.mark.parametrize("error", [ValueError("a defect"), NoUpload(), KeyboardInterrupt()], ids=repr)
    def test_whatever_is_not_the_disks_passes_as_it_is(self, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised, disk_errors(Path("/data")):
            raise error
        assert raised.value is error

    def test_a_quiet_disk_is_not_noticed(self) -> None:
        with disk_errors(Path("/data")):
            done = True
        assert done


class TestLedgerError:
    """What a failure of SQLite means, whatever was asked of it."""

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("SQLITE_FULL", "no space is left"),
            ("SQLITE_READONLY", "make both writable"),
            ("SQLITE_READONLY_DBMOVED", "make both writable"),
            ("SQLITE_BUSY", "stop that program"),
            ("SQLITE_BUSY_SNAPSHOT", "stop that program"),
            ("SQLITE_LOCKED", "stop that program"),
            ("SQLITE_CANTOPEN", "check that its folder exists"),
            ("SQLITE_IOERR", "check the disk's health"),
            ("SQLITE_IOERR_FSYNC", "check the disk's health"),
            ("SQLITE_NOMEM", "out of memory"),
        ],
    )
    def test_what_may_pass_is_unavailable(self, name: str, advice: str) -> None:
        said = ledger_error(LEDGER, sqlite_failure(name))
        assert type(said) is Unavailable
        assert said.message.startswith(f"cannot use the ledger {LEDGER}: ")
        assert advice in said.message

    @pytest.mark.parametrize("name", ["SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX", "SQLITE_NOTADB"])
    def test_damage_asks_for_a_backup(self, name: str) -> None:
        said = ledger_error(LEDGER, sqlite_failure(name, "malformed", DatabaseError))
        assert type(said) is DamagedLedger
        assert "malformed" in said.message
        assert "restore it from a backup" in said.message

    @pytest.mark.parametrize("error", [sqlite_failure("SQLITE_MISUSE"), RuntimeError("odd")], ids=["sqlite", "other"])
    def test_anything_else_asks_the_doctor(self, error: Exception) -> None:
        said = ledger_error(LEDGER, error)
        assert type(said) is StorageError
        assert "farm-server doctor" in said.message
        assert said.__cause__ is error

    def test_a_database_of_sqlite_itself_is_understood(self, tmp_path: Path) -> None:
        """The codes above are made up; this one is SQLite's own."""
        (tmp_path / "notes").write_bytes(b"these are notes" * 100)
        engine = create_engine(f"sqlite:///{tmp_path / 'notes'}")
        with pytest.raises(DatabaseError) as raised, engine.connect() as connection:
            connection.execute(text("SELECT * FROM tasks"))
        engine.dispose()
        assert isinstance(ledger_error(LEDGER, raised.value), DamagedLedger)


@pytest.mark.parametrize(
    ("error", "concerns_all"),
    [
        (sqlite_failure("SQLITE_FULL"), True),
        (sqlite_failure("SQLITE_BUSY"), True),
        (sqlite_failure("SQLITE_CORRUPT", kind=DatabaseError), True),
        (sqlite_failure("SQLITE_CONSTRAINT_UNIQUE", kind=IntegrityError), False),
        (sqlite_failure("SQLITE_TOOBIG", kind=DatabaseError), False),
        (StatementError("no such type", "INSERT …", {}, TypeError("bad")), False),
        (OverflowError("too large"), False),
    ],
    ids=str,
)
def test_a_record_is_blamed_only_for_what_another_would_not_meet(error: Exception, concerns_all: bool) -> None:
    assert concerns_every_change(error) is concerns_all


class TestWriteError:
    """Why one change is refused while others are written."""

    def test_a_second_task_with_a_submit_token_is_a_conflict(self) -> None:
        unique = "UNIQUE constraint failed: tasks.submit_token"
        said = write_error(sqlite_failure("SQLITE_CONSTRAINT_UNIQUE", unique, IntegrityError))
        assert type(said) is Conflict
        assert "submit token" in said.message

    @pytest.mark.parametrize(
        "error",
        [
            sqlite_failure("SQLITE_CONSTRAINT_NOTNULL", "NOT NULL constraint failed: tasks.state", IntegrityError),
            sqlite_failure("SQLITE_ERROR", "tasks.submit_token is odd"),
            OverflowError("Python int too large to convert to SQLite INTEGER"),
        ],
        ids=["integrity", "operational", "overflow"],
    )
    def test_all_else_is_the_records_fault_and_says_which(self, error: Exception) -> None:
        said = write_error(error)
        assert type(said) is BadRecord
        cause = error.orig if isinstance(error, StatementError) else error
        assert str(cause) in said.message
        assert said.__cause__ is error


@pytest.mark.parametrize("kind", [NewerLedger, DamagedLedger, LostLedger, BadRecord, BlobTooLarge, NoUpload])
def test_every_error_has_a_code_of_its_own_and_says_something_without_being_told(kind: type[FarmError]) -> None:
    codes = [one.code for one in vars(errors).values() if isinstance(one, type) and issubclass(one, FarmError)]
    assert codes.count(kind.code) == 1
    assert len(kind().message) > 20
