"""Makes facts durable, in the order in which they were decided, and goes on trying when the disk refuses.

What is submitted while a transaction is in flight goes to the ledger together when it is done; the ledger makes one
transaction of it (group commit), so that a slow disk costs latency and not throughput.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from coordinator.records import Entry, Record
from protocol.errors import FarmError, Unavailable

_RETRY_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Saver(Protocol):
    """The part of the ledger that the journal needs."""

    def submit(self, records: Sequence[Record], entries: Sequence[Entry] = ()) -> asyncio.Future[None]:
        """Queue one transaction. The future is done when it is durable; Unavailable: try again; else: refused."""


@dataclass(frozen=True, slots=True)
class _Change:
    records: tuple[Record, ...]
    entries: tuple[Entry, ...]
    saved: asyncio.Future[None]


class Journal:
    """The only writer of facts, on the event loop.

    ``on_saved`` hears of the entries that became readable. ``failure`` is None while all is well.
    """

    def __init__(
        self,
        ledger: Saver,
        on_saved: Callable[[Sequence[Entry]], None],
        *,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        self._ledger = ledger
        self._on_saved = on_saved
        self._retry_seconds = retry_seconds
        self._waiting: list[_Change] = []
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.failure: str | None = None

    def start(self) -> None:
        """Begin to save."""
        self._task = asyncio.create_task(self._run(), name="journal")

    async def close(self) -> None:
        """Save what waits, then stop. What a refusing disk does not take now is given up."""
        self._closing = True
        self._work.set()
        if self._task is not None:
            await self._task

    def submit(self, records: Sequence[Record], entries: Sequence[Entry] = ()) -> asyncio.Future[None]:
        """Save it after all that was submitted before; the future is done when it is durable (or cancelled)."""
        saved = asyncio.get_running_loop().create_future()
        self._waiting.append(_Change(tuple(records), tuple(entries), saved))
        self._work.set()
        return saved

    async def _run(self) -> None:
        while not (self._closing and not self._waiting):
            await self._work.wait()
            self._work.clear()
            changes, self._waiting = self._waiting, []
            while changes:
                changes = await self._save(changes)
                if changes and self._closing:
                    _log.error("facts are lost: the ledger refuses them at shutdown", changes=len(changes))
                    for change in changes:
                        change.saved.cancel()
                    break
                if changes:
                    await asyncio.sleep(self._retry_seconds)

    async def _save(self, changes: Sequence[_Change]) -> list[_Change]:
        """Save in order; return what must be tried again: all from the first that the disk would not take.

        Later ones that did get through are saved again, without their entries, lest an older record that is
        retried overwrite a newer one.
        """
        futures = [self._ledger.submit(change.records, change.entries) for change in changes]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        again: list[_Change] = []
        for change, outcome in zip(changes, outcomes, strict=True):
            if outcome is None:
                self._on_saved(change.entries)
            if isinstance(outcome, Unavailable):
                self._fails(outcome)
                again.append(change)
            elif again:
                again.append(replace(change, entries=()))
            else:
                self._settle(change, outcome)
        if not again and self.failure is not None:
            _log.info("the ledger saves again")
            self.failure = None
        return again

    def _settle(self, change: _Change, outcome: BaseException | None) -> None:
        if outcome is not None:
            # retrying could never help, and the farm must not stand still for one record
            kinds = sorted({type(record).__name__ for record in (*change.records, *change.entries)})
            _log.error("the ledger refused records for good", kinds=kinds, error=str(outcome))
        if not change.saved.done():
            change.saved.set_result(None)

    def _fails(self, error: FarmError) -> None:
        if self.failure is None:
            _log.error("the ledger can't be written; trying again", error=error.message)
        self.failure = error.message
