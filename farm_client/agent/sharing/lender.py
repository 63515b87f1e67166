"""Lends the cache's blobs to the other agents of this machine, as read-only handles."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Self

from farm_client.agent.blobs.cache import BlobCache
from farm_client.agent.errors import NoControlSocket
from farm_client.agent.home.local_socket import is_of_this_user, listening_socket
from farm_client.agent.sharing.records import LENT, RECORD_BYTES, REFUSED, Wish, read_request
from protocol.errors import FarmError

_MOST_CONNECTIONS: Final = 16
_MOST_SHARE: Final = 0.5
"""Of the cache: what is lent cannot be evicted, and the agent needs room for its own work."""


class BlobLender:
    """Serves ``HOME/blobs.sock``; see ``records``. What is lent stays in the cache until its lease ends.

    A borrower is a process of the same user. One that says what is no request, or takes no answer, is let go.
    """

    def __init__(self, cache: BlobCache, path: Path, max_bytes: int) -> None:
        """``max_bytes``: of the cache."""
        self._cache = cache
        self._path = path
        self._most_bytes = int(max_bytes * _MOST_SHARE)
        self._serving: set[asyncio.Task[None]] = set()
        self.lent_bytes = 0
        """Of all leases together; a blob that two have leased counts twice."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Lend while the context lasts. On a system without such sockets nothing is lent, and nothing is said of it."""
        try:
            listening = listening_socket(self._path, _MOST_CONNECTIONS)
        except NoControlSocket:
            yield self
            return
        listening.setblocking(False)
        accepting = asyncio.get_running_loop().create_task(self._accept(listening))
        try:
            yield self
        finally:
            tasks = {accepting, *self._serving}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            listening.close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)
            if len(self._serving) >= _MOST_CONNECTIONS or not is_of_this_user(connection):
                connection.close()
                continue
            connection.setblocking(False)
            task = loop.create_task(self._serve(connection))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError), _Loans(self, self._cache) as loans:
            while (record := await _record(connection)) is not None:
                wish, digest = read_request(record)
                if wish is Wish.END:
                    loans.end(digest)
                else:
                    await self._answer(connection, await loans.lend(digest))

    async def _answer(self, connection: socket.socket, path: Path | None) -> None:
        if path is None:
            await asyncio.get_running_loop().sock_sendall(connection, REFUSED)
            return
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:  # one byte; a borrower for whom there is no room has read none of many answers
            socket.send_fds(connection, [LENT], [handle])
        finally:
            os.close(handle)

    def has_room_for(self, size_bytes: int) -> bool:
        """Return whether so much more may be lent."""
        return self.lent_bytes + size_bytes <= self._most_bytes


class _Loans:
    """What one borrower has: each blob is pinned until it is given back, or the borrower is gone."""

    def __init__(self, lender: BlobLender, cache: BlobCache) -> None:
        self._lender = lender
        self._cache = cache
        self._pins: dict[str, ExitStack] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for digest in tuple(self._pins):
            self.end(digest)

    async def lend(self, digest: str) -> Path | None:
        """Pin a blob, and return its file; None if it is not here, is damaged, or too much is lent already."""
        if digest in self._pins:
            return self._cache.path(digest)
        with ExitStack() as pin:
            pin.enter_context(self._cache.pinned((digest,)))
            path = await self._sound(digest)
            if path is None:
                return None
            size_bytes = path.stat().st_size
            if not self._lender.has_room_for(size_bytes):
                return None
            self._lender.lent_bytes += size_bytes
            pin.callback(self._came_back, size_bytes)
            self._pins[digest] = pin.pop_all()
            return path

    def end(self, digest: str) -> None:
        """Let a blob go; one that was not lent is none."""
        if (pin := self._pins.pop(digest, None)) is not None:
            pin.close()

    async def _sound(self, digest: str) -> Path | None:
        """Return the file of a blob that is here; whoever asks for what is not here has missed nothing of ours."""
        if digest not in self._cache:
            return None
        try:
            return await self._cache.find(digest)
        except FarmError:
            return None

    def _came_back(self, size_bytes: int) -> None:
        self._lender.lent_bytes -= size_bytes


async def _record(connection: socket.socket) -> bytes | None:
    """Read one request; None at the end of the connection, also in the middle of one."""
    loop, record = asyncio.get_running_loop(), b""
    while len(record) < RECORD_BYTES:
        piece = await loop.sock_recv(connection, RECORD_BYTES - len(record))
        if not piece:
            return None
        record += piece
    return record
