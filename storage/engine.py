"""The two database engines of a ledger: one writer, many readers, on one SQLite file in WAL mode."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from storage.errors import StorageError
from storage.sqlite import SQLITE

LOCK_WAIT_SECONDS: Final = 5.0
"""How long a statement waits for another program's lock before it fails."""


def ledger_path(location: str | Path) -> Path:
    """Return the file of a ledger given by path or by URL (``sqlite:///...``, ``sqlite+aiosqlite:///...``).

    Raises: StorageError for another kind of database, or none.
    """
    if isinstance(location, Path) or "://" not in location:
        return Path(location)
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise StorageError(f"{location!r} is not a database URL; give a path or sqlite:///PATH") from error
    if url.get_backend_name() not in SQLITE.schemes:
        raise StorageError(f"the ledger cannot use {url.get_backend_name()} yet; give a path or sqlite:///PATH")
    if not url.database or url.database == ":memory:":
        raise StorageError("the ledger needs a file to outlive the server; give a path or sqlite:///PATH")
    return Path(url.database)


def writer_engine(path: Path) -> Engine:
    """Return the engine of the one thread that writes: each transaction takes the write lock when it begins."""
    engine = create_engine(
        SQLITE.address(path), poolclass=QueuePool, pool_size=1, max_overflow=0, connect_args=_connect_arguments()
    )
    _prepare(engine, SQLITE.writer_pragmas, SQLITE.begin_writing)
    return engine


def reader_engine(path: Path, *, writes_nothing: bool = False) -> AsyncEngine:
    """Return the engine of the readers: they see what is committed and can change nothing.

    With ``writes_nothing`` not even SQLite itself tidies the file up, as it does when the last one closes it.
    """
    url = URL.create("sqlite+aiosqlite", database=str(path))
    if writes_nothing:
        url = SQLITE.read_only_address(path, "sqlite+aiosqlite")
    engine = create_async_engine(url, connect_args=_connect_arguments())
    _prepare(engine.sync_engine, SQLITE.reader_pragmas, SQLITE.begin_reading)
    return engine


def _connect_arguments() -> dict[str, float]:
    return {"timeout": LOCK_WAIT_SECONDS}


def _prepare(engine: Engine, pragmas: tuple[str, ...], begin: str) -> None:
    """Take transactions out of the driver's hands, which would begin them late and commit them before DDL."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        try:
            with closing(connection.cursor()) as cursor:
                for pragma in pragmas:
                    cursor.execute(pragma)
        except BaseException:
            connection.close()  # the pool does not own it yet
            raise

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
