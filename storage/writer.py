"""The one thread that writes the ledger, and the one queue before it: group commit, and retries while the disk refuses.

A commit costs one fsync however much it holds, so what waits while one is under way is folded into the next: under
load each save costs a fraction of an fsync, and alone it is written at once. What must not be lost (``insist``) stays
at the head of the queue while the disk refuses, and nothing submitted after it is written before it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection, Engine

from protocol.errors import FarmError, Unavailable
from protocol.retry import RetryPolicy
from storage.errors import DISK_RETRY, concerns_every_change, ledger_error, write_error
from storage.transaction import Change, StoredSpecs, write_changes

GROUP_RECORDS: Final = 1000
"""A transaction takes no further change once it holds so many rows: latency stays bounded."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    change: Change
    insists: bool
    done: asyncio.Future[None]


_Outcome = FarmError | None
"""Why one change was refused, or None for written."""


class Writer:
    """Takes changes in order, from the event loop's thread, and answers each through a future.

    ``failure`` says why the disk takes nothing while a change insists, and is None while all is well.
    """

    def __init__(
        self, engine: Engine, path: Path, loop: asyncio.AbstractEventLoop, retry: RetryPolicy = DISK_RETRY
    ) -> None:
        self._engine = engine
        self._path = path
        self._loop = loop
        self._retry = retry
        self._stored = StoredSpecs()
        self._of_this_turn: list[_Waiting] = []
        self._waiting: deque[_Waiting] = deque()
        self._closing = False
        self._changed = threading.Condition()
        """Guards the two above: the event loop's thread adds, the writer's thread takes."""
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, change: Change, *, insist: bool = False) -> asyncio.Future[None]:
        """Queue the change behind those submitted before; the future is done when it is durable, or refused.

        One that insists is not refused with Unavailable before the close.
        """
        done = self._loop.create_future()
        if self._closing:
            done.set_exception(Unavailable(f"the ledger {self._path} is closed; start the server again"))
            return done
        if not self._of_this_turn:
            self._loop.call_soon(self._hand_over)
        self._of_this_turn.append(_Waiting(change, insist, done))
        return done

    async def close(self) -> None:
        """Write what waits, as far as the disk takes it at once, then end the thread and close the file."""
        self._hand_over(closing=True)
        await asyncio.to_thread(self._thread.join)
        self._engine.dispose()

    def _hand_over(self, *, closing: bool = False) -> None:
        """Give the thread what one turn of the loop submitted, as one: the first of many must not go alone."""
        with self._changed:
            self._waiting.extend(self._of_this_turn)
            self._of_this_turn.clear()
            self._closing |= closing
            self._changed.notify()

    def _run(self) -> None:
        failures = 0
        while group := self._next_group():
            outcomes = self._commit([waiting.change for waiting in group])
            kept = [] if self._closing else _to_try_again(group, outcomes)
            failures = failures + 1 if kept else 0
            self._tell_failure(kept, outcomes)
            self._answer([pair for pair in zip(group, outcomes, strict=True) if not (kept and pair[0].insists)])
            if kept:
                self._wait_with(kept, self._retry.bound_seconds(failures))

    def _next_group(self) -> list[_Waiting]:
        """Wait for changes and take them, up to the group's limit. None is the end."""
        group: list[_Waiting] = []
        records = 0
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            while self._waiting and records < GROUP_RECORDS and not (group and group[-1].change.removes):
                group.append(self._waiting.popleft())
                records += group[-1].change.size
        return group

    def _wait_with(self, kept: Sequence[_Waiting], seconds: float) -> None:
        """Put what is kept before all that waits, and let the disk be for a while, unless the ledger is closed."""
        with self._changed:
            self._waiting.extendleft(reversed(kept))
            self._changed.wait_for(lambda: self._closing, seconds)

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

    def _tell_failure(self, kept: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> None:
        first = outcomes[0]
        if isinstance(first, Unavailable) and not kept:
            return  # nothing insists
        failure = None if first is None or not kept else first.message
        if (failure is None) is not (self.failure is None):
            if failure is None:
                _log.info("the ledger saves again")
            else:
                _log.error("the ledger can't be written; trying again", error=failure)
        self.failure = failure

    def _answer(self, answered: Sequence[tuple[_Waiting, _Outcome]]) -> None:
        try:
            self._loop.call_soon_threadsafe(_resolve, answered)
        except RuntimeError:  # the loop is closed: nobody waits for the answer, and nobody will submit
            self._closing = True


def _to_try_again(group: Sequence[_Waiting], outcomes: Sequence[_Outcome]) -> list[_Waiting]:
    """Return what the disk would not take and must not be lost. It takes all of a transaction or nothing."""
    return [w for w, outcome in zip(group, outcomes, strict=True) if w.insists and isinstance(outcome, Unavailable)]


def _resolve(answered: Sequence[tuple[_Waiting, _Outcome]]) -> None:
    for waiting, refused in answered:
        if waiting.done.done():  # its caller was cancelled
            continue
        if refused is None:
            waiting.done.set_result(None)
        else:
            waiting.done.set_exception(refused)
