"""Writes a stream in threads while more of it arrives: it is on disk soon, and the event loop never waits for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

MAX_WAITING_BYTES: Final = 1024 * 1024
"""More is not taken before some is written; as much may be on its way to the disk besides."""
_WORTH_A_WRITE_BYTES: Final = MAX_WAITING_BYTES // 2
_LINGER_SECONDS: Final = 0.01
"""How long less than that waits for more: a thread for each small chunk costs more than the chunk."""


class WriteBehind:
    """Calls ``write`` in a thread with all that came since its last call: one call at a time, in order.

    ``write`` is also given the place of the first byte; that of the stream's is ``start``. So a fast stream is written
    in large pieces, and a slow one nearly as it comes. For one task on the event loop.
    """

    def __init__(self, write: Callable[[int, list[bytes]], None], start: int, threads: Executor) -> None:
        self._write = write
        self._at = start
        self._threads = threads
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._error: BaseException | None = None

    async def put(self, chunk: bytes) -> None:
        """Take a chunk. Raises: what ``write`` raised; nothing is written any more then."""
        self._check()
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self._go_on()
        while self._waiting_bytes >= MAX_WAITING_BYTES and self._writing is not None:
            await asyncio.wait([self._writing])

    async def flush(self) -> None:
        """Wait until all is written. Raises: what ``write`` raised."""
        while self._writing is not None or self._waiting:
            if self._writing is None:
                self._begin()
            else:
                await asyncio.wait([self._writing])
        self._check()

    def _go_on(self) -> None:
        """Write what waits if it is worth it, else soon."""
        if self._writing is not None:
            return
        if self._waiting_bytes >= _WORTH_A_WRITE_BYTES:
            self._begin()
        elif self._waiting and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._begin)

    def _begin(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        at, chunks = self._at, self._waiting
        self._at += self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        self._writing = asyncio.get_running_loop().run_in_executor(self._threads, self._write, at, chunks)
        self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writing = None
        self._error = writing.exception()
        if self._error is not None:
            self._waiting.clear()
            self._waiting_bytes = 0
        self._go_on()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
