"""What a blob folder holds against what its ledger refers to, looked at while nobody writes either."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from coordinator.records import Snapshot
from storage.engine import reader_engine
from storage.errors import ledger_error
from storage.file_digest import digest_of_file
from storage.ledger import SqlLedger
from storage.ledger_file import copy_ledger
from storage.migrate import NEWEST, current_revision
from storage.reads import Reads
from storage.references import NEEDED
from storage.sqlite import SQLITE


@dataclass(frozen=True, slots=True)
class Inspection:
    """``unreadable`` are the digests of needed blobs that are missing or damaged."""

    references: frozenset[str]
    unreadable: tuple[str, ...]
    orphans: int
    half_written: int

    @property
    def needed(self) -> int:
        """Count the blobs that the ledger refers to."""
        return len(self.references)


def load_snapshot(ledger: Path) -> Snapshot:
    """Load what a server would go on from, without changing the ledger. Blocks, outside of any event loop.

    One of an older version is upgraded as a copy. Raises: Unavailable; StorageError; OSError.
    """
    if _revision(ledger) == NEWEST:
        return asyncio.run(_load_unchanged(ledger))
    with tempfile.TemporaryDirectory(prefix="aifarm-ledger-") as folder:
        copy = Path(folder) / ledger.name
        copy_ledger(ledger, copy)
        return asyncio.run(_load_upgraded(copy))


def referenced_by(ledger: Path) -> frozenset[str]:
    """Return the names of all blobs that a ledger's file refers to, without changing it.

    Raises: Unavailable; DamagedLedger; StorageError.
    """
    engine = create_engine(SQLITE.read_only_address(ledger))
    try:
        with engine.connect() as connection:
            return frozenset(str(row.digest) for row in connection.execute(NEEDED))
    except SQLAlchemyError as error:
        raise ledger_error(ledger, error) from error
    finally:
        engine.dispose()


def inspect_blobs(ledger: Path, blobs: Path) -> Inspection:
    """Hash every needed blob and count what nothing needs. Raises: OSError; as ``referenced_by``."""
    needed = referenced_by(ledger)
    here = {path.name: path for path in blobs.glob("[0-9a-f][0-9a-f]/*")}
    return Inspection(
        references=needed,
        unreadable=tuple(d for d in sorted(needed) if d not in here or digest_of_file(here[d]) != d),
        orphans=len(here.keys() - needed),
        half_written=sum(1 for _ in (blobs / "tmp").glob("*")),
    )


def _revision(ledger: Path) -> str | None:
    engine = create_engine(SQLITE.read_only_address(ledger))
    try:
        with engine.connect() as connection:
            return current_revision(connection)
    except SQLAlchemyError as error:
        raise ledger_error(ledger, error) from error
    finally:
        engine.dispose()


async def _load_unchanged(ledger: Path) -> Snapshot:
    engine = reader_engine(ledger, writes_nothing=True)
    try:
        return await Reads(engine, ledger).load()
    finally:
        await engine.dispose()


async def _load_upgraded(ledger: Path) -> Snapshot:
    opened = await SqlLedger.open(ledger)
    try:
        return await opened.load()
    finally:
        await opened.close()
