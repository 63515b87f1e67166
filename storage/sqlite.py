"""All that only SQLite needs: how it is opened, how it writes, what its errors mean, how its file is looked after.

The rest of the package asks the one object ``SQLITE``, and nothing outside of it imports a driver. Another database
would come as another object with these methods.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Dialect, Insert, Table
from sqlalchemy.dialects import sqlite


class SqliteDialect:
    """One file, in WAL mode; one writer, any number of readers."""

    schemes: Final = frozenset({"sqlite"})
    error: Final = sqlite3.Error
    version: Final = f"SQLite {sqlite3.sqlite_version}"
    sql: Final[Dialect] = sqlite.dialect(paramstyle="qmark")
    """How SQLAlchemy writes statements and passes values for it."""
    writer_pragmas: Final = (
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",  # a commit is on the disk when it returns
        "PRAGMA journal_size_limit = 67108864",
    )
    reader_pragmas: Final = ("PRAGMA query_only = ON",)
    begin_writing: Final = "BEGIN IMMEDIATE"
    """Each transaction takes the write lock when it begins: it can't fail half-way for want of it."""
    begin_reading: Final = "BEGIN"
    damage: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
    """Results that say that the file is not whole."""
    refusals: Final[Mapping[str, int]] = {"SQLITE_FULL": errno.ENOSPC}
    """Results that mean what an error of the operating system does."""
    advice: Final[dict[str, str]] = {
        "SQLITE_READONLY": "the file or its folder is read-only; make both writable",
        "SQLITE_BUSY": "another program keeps it locked; stop that program and try again",
        "SQLITE_LOCKED": "another program keeps it locked; stop that program and try again",
        "SQLITE_CANTOPEN": "it cannot be opened; check that its folder exists and is writable",
        "SQLITE_IOERR": "reading or writing its file failed; check the disk's health and free space",
        "SQLITE_NOMEM": "the server is out of memory; free some and try again",
    }
    """Other results that concern every change, and what to do."""

    def result_code(self, cause: BaseException | None) -> str:
        """Return the primary result by name: ``SQLITE_IOERR_FSYNC`` counts as ``SQLITE_IOERR``; empty for none."""
        return "_".join(getattr(cause, "sqlite_errorname", "").split("_")[:2])

    def insert(self, table: Table) -> Insert:
        """Return a statement that appends rows."""
        return sqlite.insert(table)

    def insert_once(self, table: Table) -> Insert:
        """Return a statement that saves rows whose keys are new."""
        return sqlite.insert(table).on_conflict_do_nothing(index_elements=list(table.primary_key))

    def upsert(self, table: Table) -> Insert:
        """Return a statement that saves rows, each in the place of one with its key."""
        statement = sqlite.insert(table)
        key = {column.name for column in table.primary_key}
        changes: Mapping[str, Any] = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in key}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changes)

    def add(self, table: Table) -> Insert:
        """Return a statement that adds rows' values to those of the row with their key."""
        statement = sqlite.insert(table)
        key = {column.name for column in table.primary_key}
        sums: Mapping[str, Any] = {c.name: c + statement.excluded[c.name] for c in table.columns if c.name not in key}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=sums)

    def address(self, path: Path) -> URL:
        """Return the address of a file, for SQLAlchemy."""
        return URL.create("sqlite", database=str(path))

    def read_only_address(self, path: Path, driver: str = "sqlite") -> URL:
        """Return the address of a file to which not even SQLite itself writes, as it does when the last one closes."""
        return URL.create(driver, database=path.absolute().as_uri(), query={"mode": "ro", "uri": "true"})

    def read_only(self, path: Path, wait_seconds: float) -> sqlite3.Connection:
        """Open a file without SQLAlchemy, to look at. Raises: ``error``."""
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=wait_seconds)

    def copy(self, source: Path, target: Path, wait_seconds: float) -> None:
        """Copy whole transactions only, while others write; the copy is one file. Raises: ``error``."""
        with closing(self.read_only(source, wait_seconds)) as old, closing(sqlite3.connect(target)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")

    def shrink(self, path: Path) -> None:
        """Give the room of removed rows back to the disk. Raises: ``error``."""
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("VACUUM")

    def check(self, path: Path, wait_seconds: float) -> str | None:
        """Read the whole file; say what is wrong with it, or return None. Raises: ``error``."""
        with closing(self.read_only(path, wait_seconds)) as connection:
            verdict = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        return None if verdict == "ok" else " ".join(verdict.split())

    def is_blank(self, path: Path, wait_seconds: float) -> bool:
        """Whether the file has no table. Raises: ``error``."""
        with closing(self.read_only(path, wait_seconds)) as connection:
            return not connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()


SQLITE: Final = SqliteDialect()
