"""From the outbox to the farm: upload what is large, send the result; again after each welcome until it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from typing import Final

from farm_client import faults
from farm_client.agent.blobs.transfers import Transfers
from farm_client.agent.connection.link import Link
from farm_client.agent.home.outbox import Outbox, Parcel
from farm_client.agent.work.held_assignment import Held
from farm_client.transfer.upload import UploadListener
from protocol.errors import FarmError, Unavailable
from protocol.faults import Fault
from protocol.limits import INLINE_BYTES
from protocol.messages import Result
from protocol.tasks import BlobRef
from protocol.wording import counted


class UploadPlaces:
    """Who finds no place waits for one: a client that computes faster than it sends must not pile up results."""

    def __init__(self, count: int, show: Callable[[str | None], None]) -> None:
        """``show`` gets the reason why a result waits here, and None once none does."""
        self._count = count
        self._show = show
        self._free = asyncio.Semaphore(count)
        self._waiting: list[Held] = []

    @asynccontextmanager
    async def place(self, held: Held | None = None) -> AsyncIterator[None]:
        """Take a place for the length of a block. ``held``: the assignment that keeps its slot until then."""
        with self._seen_waiting(held) if held is not None and self._free.locked() else nullcontext():
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()

    def beat(self) -> None:
        """Report with each heartbeat that what waits here waits on purpose, and is not stuck."""
        for held in self._waiting:
            held.waited(self._reason)

    @contextmanager
    def _seen_waiting(self, held: Held) -> Iterator[None]:
        self._waiting.append(held)
        self._show(self._reason)
        try:
            yield
        finally:
            self._waiting.remove(held)
            if not self._waiting:
                self._show(None)

    @property
    def _reason(self) -> str:
        return f"{counted(self._count, 'result')} on the way already; the slot is free again when one has arrived"


_LAST_ACKS_SECONDS: Final = 1.0
"""How long a leaving client waits for acknowledgements; what comes later is said at its next join."""


class Deliveries:
    """Sends results over whatever connection there is; without one they wait in the outbox for the next ``attach``."""

    def __init__(
        self,
        outbox: Outbox,
        transfers: Transfers,
        note: Callable[[str], None],
        show_wait: Callable[[str | None], None],
    ) -> None:
        """``note`` gets sentences; ``show_wait`` why an upload waits for its turn, and None when none does."""
        self._outbox = outbox
        self._transfers = transfers
        self._note = note
        self._show_wait = show_wait
        self._waiting: dict[str, str] = {}
        """Why, by the assignments whose uploads wait for their turn."""
        self._link: Link | None = None
        self._under_way: set[str] = set()
        self._sent_inline: set[str] = set()
        """The assignments whose updates have left inside a result, and are not settled."""

    def attach(self, link: Link) -> tuple[str, ...]:
        """Use this connection from now on; returns the assignments whose results are to be sent again."""
        self._link = link
        self._sent_inline.intersection_update(self._outbox.assignment_ids())
        return tuple(i for i in self._outbox.assignment_ids() if i not in self._under_way)

    def detach(self) -> None:
        """The connection is over. Uploads that run go on."""
        self._link = None

    async def deliver_again(self, assignment_id: str) -> None:
        """Send what waits for an assignment; a result that cannot be sent is dropped, with a note."""
        parcel = self._outbox.read(assignment_id)
        if parcel is None:
            return
        try:
            await self.deliver(parcel)
        except Exception as error:  # no result is worth the agent
            self._note(f"dropped a finished result: {str(error) or type(error).__name__}")

    async def deliver(self, parcel: Parcel, listener: UploadListener | None = None) -> None:
        """Bring a result that is in the outbox to the farm; ``listener`` follows the upload of its update.

        When the connection is gone it returns all the same: the outbox has the result for the next one.

        Raises: FarmError and OSError if the farm refuses the update or its file is gone. Whatever is raised, the result
            has left the outbox then.
        """
        assignment_id = parcel.result.assignment_id
        self._under_way.add(assignment_id)
        try:
            await _reach(Fault.CLIENT_SLOW, parcel)
            update = parcel.result.update
            if update is None or (update.inline is not None and len(update.inline) <= self._inline_bytes()):
                if not await _reach(Fault.CLIENT_WHILE_SENDING, parcel):
                    await self._send(parcel.result, parcel)
            elif await self._upload(update, parcel, listener or UploadListener()):
                slim = update.model_copy(update={"inline": None})
                await self._send(parcel.result.model_copy(update={"update": slim}), parcel)
        except Exception:
            self._outbox.remove(assignment_id)
            raise
        finally:
            self._under_way.discard(assignment_id)
            self._hear_wait(assignment_id, None)

    def settle(self, assignment_id: str) -> None:
        """Drop a result that the farm has acknowledged, unless the acknowledgement is lost on purpose."""
        self._sent_inline.discard(assignment_id)
        round_number = self._outbox.round_of(assignment_id)
        if round_number is None or not faults.reach(Fault.CLIENT_REPLY_LOST, round_number):
            self._outbox.remove(assignment_id)

    async def last_acks(self) -> None:
        """Wait for acknowledgements of what was sent, but not for long."""
        try:
            async with asyncio.timeout(_LAST_ACKS_SECONDS if self._link is not None else 0):
                await self._outbox.emptied.wait()
        except TimeoutError:
            self._note("finished results wait in the outbox for the farm's answer; the next join sends them again")

    def _inline_bytes(self) -> int:
        """How large an update may be to ride inside its result: less where the connection is slow."""
        return self._link.inline_bytes if self._link is not None else INLINE_BYTES

    async def _upload(self, update: BlobRef, parcel: Parcel, listener: UploadListener) -> bool:
        """Store the update at the farm, for as long as there is a connection; return whether it is there."""
        source = parcel.path if update.inline is None else update.inline
        if source is None:
            raise FarmError(f"the update of {parcel.result.assignment_id} is neither in its result nor in a file")

        def hear_wait(reason: str | None) -> None:
            listener.waits(reason)
            self._hear_wait(parcel.result.assignment_id, reason)

        hearing = replace(listener, waits=hear_wait, midway=lambda: _reach(Fault.CLIENT_WHILE_SENDING, parcel))
        while self._link is not None:
            try:
                await self._transfers.upload(update.digest, source, hearing)
            except Unavailable as error:
                self._note(f"{error.message}; trying again")
            else:
                return True
        return False

    def _hear_wait(self, assignment_id: str, reason: str | None) -> None:
        if reason is None:
            self._waiting.pop(assignment_id, None)
        else:
            self._waiting[assignment_id] = reason
        self._show_wait(next(iter(self._waiting.values()), None))

    async def _send(self, result: Result, parcel: Parcel) -> None:
        link = self._link
        if link is None:
            return
        link.post(result)
        self._count(result)
        if faults.armed():
            await link.flushed()
            if await _reach(Fault.CLIENT_AFTER_SEND, parcel):
                link.cut()

    def _count(self, result: Result) -> None:
        """Count an update that left inside its result; ``settle`` forgets that it did."""
        if result.update is None or result.update.inline is None:
            return
        size_bytes, tally = len(result.update.inline), self._transfers.tally
        tally.sent_bytes += size_bytes
        tally.sent_again_bytes += size_bytes if result.assignment_id in self._sent_inline else 0
        self._sent_inline.add(result.assignment_id)


async def _reach(place: Fault, parcel: Parcel) -> bool:
    """Come to a place with an update; evaluations have none, and pass."""
    return parcel.result.update is not None and await faults.reach_async(place, parcel.round)
