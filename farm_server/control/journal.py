"""The coordinator's way to the ledger: what it decided becomes durable in that order, and readers are woken.

There is no queue here: the ledger's writer has the only one (``storage.writer``), groups what waits in it, and tries
again while the disk refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import structlog

from coordinator.records import Entry, Record
from protocol.errors import Unavailable

_log = structlog.get_logger(__name__)


class Saver(Protocol):
    """The part of the ledger that saves."""

    @property
    def failure(self) -> str | None:
        """Why the disk takes nothing while a save insists; None while all is well."""

    def submit(
        self, records: Sequence[Record], entries: Sequence[Entry] = (), *, insist: bool = False
    ) -> asyncio.Future[None]:
        """Queue one transaction. The future is done when it is durable; Unavailable: not now; else: never."""


class Journal:
    """On the event loop. ``on_saved`` hears of the entries that became readable, before whoever saved them does.

    ``before`` is called with records that are about to be queued: what it queues itself is durable before they are.
    """

    def __init__(
        self,
        ledger: Saver,
        on_saved: Callable[[Sequence[Entry]], None],
        before: Callable[[Sequence[Record]], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        self._on_saved = on_saved
        self._before = before

    @property
    def failure(self) -> str | None:
        """Why nothing becomes durable now; None while all is well."""
        return self._ledger.failure

    def submit(self, records: Sequence[Record], entries: Sequence[Entry] = ()) -> asyncio.Future[None]:
        """Save it after all that was submitted before; the future is done when it is durable.

        It is done too if the ledger can't hold it: retrying could never help, and the farm must not stand still for
        one record. It is cancelled if the server stops while the disk refuses.
        """
        self._before(records)
        saved = asyncio.get_running_loop().create_future()
        written = self._ledger.submit(records, entries, insist=True)
        written.add_done_callback(partial(self._settle, saved, records, entries))
        return saved

    def _settle(
        self,
        saved: asyncio.Future[None],
        records: Sequence[Record],
        entries: Sequence[Entry],
        written: asyncio.Future[None],
    ) -> None:
        error = None if written.cancelled() else written.exception()
        if written.cancelled() or isinstance(error, Unavailable):
            _log.error("facts are lost: the ledger refuses them at shutdown", records=len(records))
            saved.cancel()
            return
        if error is None:
            self._on_saved(entries)
        else:
            kinds = sorted({type(record).__name__ for record in (*records, *entries)})
            _log.error("the ledger refused records for good", kinds=kinds, error=str(error))
        if not saved.done():
            saved.set_result(None)
