"""How many finished results may be on their way to the farm while their slots work on something else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

from farm_client.agent.work.held_assignment import Held
from protocol.wording import counted


class UploadPlaces:
    """Who finds no place waits for one: a client that computes faster than it sends must not pile up results."""

    def __init__(self, count: int, show: Callable[[str | None], None]) -> None:
        """``show`` hears why a result waits here, and None once none does."""
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
        """Let each heartbeat say that whoever waits here does so as told, and is not stuck."""
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
