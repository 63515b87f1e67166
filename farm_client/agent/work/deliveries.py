"""From the outbox to the farm: what is finished is sent, and again after each welcome until the farm has settled it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from typing import Final, Self

from farm_client.agent.connection.link import Link
from farm_client.agent.home.outbox import Outbox, Parcel
from farm_client.agent.work.held_assignment import Held
from farm_client.agent.work.result_sender import ResultSender
from farm_client.transfer.upload import UploadListener
from protocol.assignments import Phase
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


class WayOut:
    """How a pipelined assignment leaves its slot: once, when its steps are done or at the latest with its result.

    It takes a place of an upload for that, and keeps it to the end of the block.
    """

    def __init__(self, places: UploadPlaces, held: Held, on_gone: Callable[[], None]) -> None:
        self._places = places
        self._held = held
        self._on_gone = on_gone
        self._stack = AsyncExitStack()
        self._going: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._going is not None and not self._going.done():
            self._going.cancel()
            await asyncio.wait((self._going,))
        await self._stack.aclose()

    def begin(self) -> None:
        """Leave as soon as there is a place; returns at once."""
        if self._going is None:
            self._going = asyncio.get_running_loop().create_task(self._go())

    async def gone(self) -> None:
        """Wait until it has left."""
        if self._going is None:
            await self._go()  # not as a task: the slot and a small result go out in one frame
        else:
            await self._going

    async def _go(self) -> None:
        self._held.phase = Phase.UPLOADING
        await self._stack.enter_async_context(self._places.place(self._held))
        self._on_gone()


_LAST_ACKS_SECONDS: Final = 1.0
"""How long a leaving client waits for acknowledgements; what comes later is said at its next join."""


class Deliveries:
    """Sends results over whatever connection there is; without one they wait in the outbox for the next ``attach``."""

    def __init__(
        self,
        outbox: Outbox,
        sender: ResultSender,
        note: Callable[[str], None],
        show_wait: Callable[[str | None], None],
    ) -> None:
        """``note`` gets sentences; ``show_wait`` why an upload waits for its turn, and None when none does."""
        self._outbox = outbox
        self._sender = sender
        self._note = note
        self._show_wait = show_wait
        self._waiting: dict[str, str] = {}
        """Why, by the assignments whose uploads wait for their turn."""
        self._is_connected = False
        self._under_way: set[str] = set()

    def attach(self, link: Link) -> tuple[str, ...]:
        """Use this connection from now on; returns the assignments whose results are to be sent again."""
        self._is_connected = True
        unsettled = self._outbox.assignment_ids()
        self._sender.attach(link, unsettled)
        return tuple(i for i in unsettled if i not in self._under_way)

    def detach(self) -> None:
        """The connection is over. Uploads that run go on."""
        self._is_connected = False
        self._sender.detach()

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
        listener = listener or UploadListener()

        def on_wait(reason: str | None) -> None:
            listener.waits(reason)
            self._on_wait(assignment_id, reason)

        self._under_way.add(assignment_id)
        try:
            await self._sender.send(parcel, replace(listener, waits=on_wait))
        except Exception:
            self._outbox.remove(assignment_id)
            raise
        finally:
            self._under_way.discard(assignment_id)
            self._on_wait(assignment_id, None)

    def settle(self, assignment_id: str) -> None:
        """Drop a result that the farm has acknowledged."""
        self._sender.settled(assignment_id)
        self._outbox.remove(assignment_id)

    async def last_acks(self) -> None:
        """Wait for acknowledgements of what was sent, but not for long."""
        try:
            async with asyncio.timeout(_LAST_ACKS_SECONDS if self._is_connected else 0):
                await self._outbox.emptied.wait()
        except TimeoutError:
            self._note("finished results wait in the outbox for the farm's answer; the next join sends them again")

    def _on_wait(self, assignment_id: str, reason: str | None) -> None:
        if reason is None:
            self._waiting.pop(assignment_id, None)
        else:
            self._waiting[assignment_id] = reason
        self._show_wait(next(iter(self._waiting.values()), None))
