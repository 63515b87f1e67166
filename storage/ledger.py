"""The farm's facts on disk: written by one thread, read by many, kept through any crash."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from coordinator.records import Entry, Record, RemovedClient
from protocol.retry import RetryPolicy
from storage.engine import ledger_path, reader_engine, writer_engine
from storage.errors import DISK_RETRY, ledger_error
from storage.ledger_identity import begin_run
from storage.migrate import migrate
from storage.ports.ledger import History, LedgerIdentity
from storage.pruning import Pruned
from storage.reads import Reads
from storage.transaction import Change
from storage.writer import Writer

_NEWEST: Final = 2**62


class SqlLedger(Reads):
    """Saves the coordinator's records and answers what was saved. Open it with ``SqlLedger.open``.

    Writes are done in the order of their submission. What is acknowledged is on the disk, and seen by every read
    that begins after it. A refused change is refused alone and whole; changes after it are written nevertheless.
    """

    def __init__(self, readers: AsyncEngine, writer: Writer, path: Path, identity: LedgerIdentity) -> None:
        super().__init__(readers, path)
        self._writer = writer
        self.identity = identity

    @classmethod
    async def open(cls, location: str | Path, *, retry: RetryPolicy = DISK_RETRY) -> Self:
        """Open the ledger at a path or SQLite URL, made new if need be, and bring its schema up to date.

        ``retry``: how often a disk that refuses is tried again with what insists.
        Raises: Unavailable if the file cannot be opened or is locked; NewerLedger; DamagedLedger; StorageError.
        """
        path = ledger_path(location)
        engine = writer_engine(path)
        try:
            identity = await asyncio.to_thread(_prepared, engine)
        except SQLAlchemyError as error:
            engine.dispose()
            raise ledger_error(path, error) from error
        except BaseException:
            engine.dispose()
            raise
        return cls(reader_engine(path), Writer(engine, path, asyncio.get_running_loop(), retry), path, identity)

    @property
    def failure(self) -> str | None:
        """Why the disk takes nothing while a save insists; None while all is well."""
        return self._writer.failure

    def submit(
        self, records: Iterable[Record], entries: Iterable[Entry] = (), *, insist: bool = False
    ) -> asyncio.Future[None]:
        """Queue a save behind those before it. The future is done once it is durable, or refused as in ``save``.

        With ``insist`` a disk that refuses is tried again until it takes the save or the ledger is closed, and nothing
        submitted later is written before. Call it on the event loop's thread.
        """
        kept: list[Record] = []
        removed: list[str] = []
        for record in records:
            if isinstance(record, RemovedClient):
                removed.append(record.client_id)
            else:
                kept.append(record)
        change = Change(tuple(kept), tuple(entries), removed_clients=tuple(removed))
        return self._writer.submit(change, insist=insist)

    async def save(self, records: Iterable[Record], entries: Iterable[Entry] = ()) -> None:
        """Write all of it in one transaction; on return it is durable.

        Raises: Conflict if another task has the submit token; BadRecord if the ledger cannot hold a record;
            Unavailable if the disk is full, read-only or failing, or another program locks the ledger.
            Nothing of this save is written then.
        """
        await self.submit(records, entries)

    async def drop_checkpoints(self, task_id: str, rounds: Iterable[int]) -> None:
        """Drop these checkpoints of the task; unknown ones are no error. Raises: Unavailable."""
        await self._writer.submit(Change(dropped=tuple((task_id, number) for number in rounds)))

    async def prune(self, history: History, task_id: str, upto: int) -> int:
        """Remove a task's history up to that number, in steps; return how many rows that were. Raises: Unavailable."""
        rows = await self.count_upto(history, task_id, upto)
        while (step := await self.next_step(history, task_id, upto)) is not None:
            await self._writer.submit(Change(pruned=(Pruned(history, task_id, step),)))
        return rows

    async def remove_task(self, task_id: str) -> None:
        """Remove all that is recorded of a task; nobody may save anything of it any more. Raises: Unavailable.

        Until it is done the task itself is still there, to be removed again.
        """
        for history in History:
            await self.prune(history, task_id, _NEWEST)
        await self._writer.submit(Change(removed=(task_id,)))

    async def close(self) -> None:
        """Write what was submitted, then close; submitting later raises Unavailable. Twice is harmless."""
        await self._writer.close()
        await self._readers.dispose()


def _prepared(engine: Engine) -> LedgerIdentity:
    migrate(engine)
    return begin_run(engine)
