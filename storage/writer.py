"""The one thread that writes the ledger, with group commit: what waits is folded into one transaction.

A commit costs one fsync however much it holds, so under load each save costs a fraction of one; alone, a save
is written at once.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from sqlalchemy import Connection, Engine

from protocol.errors import FarmError, Unavailable
from storage.errors import concerns_every_change, ledger_error, write_error
from storage.transaction import Change, StoredSpecs, write_changes

GROUP_RECORDS: Final = 1000
"""A transaction takes no further change once it holds so many rows: latency stays bounded."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    change: Change
    done: asyncio.Future[None]


_Outcome = FarmError | None
"""Why one change was refused, or None for written."""


class Writer:
    """Takes changes in order, from the event loop's thread, and answers each through a future."""

    def __init__(self, engine: Engine, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._path = path
        self._loop = loop
        self._stored = StoredSpecs()
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Change) -> asyncio.Future[None]:
        """Queue the change behind those submitted before; the future is done when it is durable, or refused."""
        done = self._loop.create_future()
        if self._closed:
            done.set_exception(Unavailable(f"the ledger {self._path} is closed; start the server again"))
        else:
            self._queue.put(_Waiting(change, done))
        return done

    async def close(self) -> None:
        """Write what waits, then end the thread and close the file."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._engine.dispose()

    def _run(self) -> None:
        open_ = True
        while open_:
            group, open_ = self._next_group()
            if group:
                self._answer(group, self._commit([waiting.change for waiting in group]))

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """Wait for a change, then take all that wait too, up to the group's limit; false at the end of the queue."""
        group: list[_Waiting] = []
        records = 0
        waiting = self._queue.get()
        while waiting is not None:
            group.append(waiting)
            records += waiting.change.size
            if records >= GROUP_RECORDS or waiting.change.removes:
                return group, True
            try:
                waiting = self._queue.get_nowait()
            except Empty:
                return group, True
        return group, False

    def _commit(self, changes: Sequence[Change]) -> Sequence[_Outcome]:
        """Write the changes in one transaction; if one of them is at fault, only that one is left out."""
        try:
            with self._engine.begin() as connection:
                write_changes(connection, changes, self._stored)
        except Exception as error:
            if concerns_every_change(error):
                return [ledger_error(self._path, error) for _ in changes]
            return self._commit_apart(changes)
        self._stored.committed(changes)
        return [None] * len(changes)

    def _commit_apart(self, changes: Sequence[Change]) -> Sequence[_Outcome]:
        """Write the changes in one transaction, each within a savepoint of its own."""
        try:
            with self._engine.begin() as connection:
                outcomes = [self._write_apart(connection, change) for change in changes]
        except Exception as error:
            return [ledger_error(self._path, error) for _ in changes]
        self._stored.committed(change for change, refused in zip(changes, outcomes, strict=True) if refused is None)
        return outcomes

    def _write_apart(self, connection: Connection, change: Change) -> _Outcome:
        try:
            with connection.begin_nested():
                write_changes(connection, [change], self._stored)
        except Exception as error:
            if concerns_every_change(error):
                raise
            return write_error(error)
        return None

    def _answer(self, group: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, group, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits for the answer
            self._closed = True


def _resolve(group: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
    for waiting, refused in zip(group, outcomes, strict=True):
        if waiting.done.done():  # its caller was cancelled
            continue
        if refused is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(refused)
