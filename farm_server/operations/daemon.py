"""The daemon's life: startup, serve, shutdown. The first Ctrl-C drains, the second forces."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import structlog
import uvloop

from farm_server.edge.file_limit import raise_file_limit
from farm_server.edge.listener import bind_kept, server_info
from farm_server.edge.serving import Serving
from farm_server.environment.data_folder import DataFolder, ServerInfo
from farm_server.environment.settings import ServerSettings
from farm_server.http.app import create_app
from farm_server.server import FarmServer
from protocol.composition import Wrap, as_built
from protocol.errors import FarmError

COLLECT_AFTER: Final = (10_000, 10, 10)
"""``gc.set_threshold``: how many more containers made than freed, and how many younger collections, before each.

A connection is some 140 containers that live for long. By default all of them would be looked at after each 70,000 new
ones: 26 times while 10,000 clients join, for up to two seconds, in which nobody is heard. This is after each million.
The younger collections stay small, for each of them is a pause too; one of 10,000 takes less than a millisecond. After
each 2,000 they took a twentieth of the time in which a round opens for 1,000 clients.
"""
_log = structlog.get_logger(__name__)


def run(
    settings: ServerSettings,
    on_ready: Callable[[ServerInfo], None],
    *,
    new_ledger: bool = False,
    wrap: Wrap = as_built,
) -> None:
    """Run a server until a signal stops it. Raises: FarmError if it can't start.

    ``new_ledger`` and ``wrap``: see ``FarmServer.open``.
    """
    raise_file_limit()
    gc.set_threshold(*COLLECT_AFTER)
    folder = DataFolder(settings.data_dir)
    folder.lock()
    try:
        listener = bind_kept(settings.host, settings.port, folder.kept_port)
        try:
            daemon = ServerDaemon(settings, folder, listener, on_ready, new_ledger=new_ledger, wrap=wrap)
            uvloop.run(daemon.live())
        finally:
            listener.close()
    finally:
        folder.unlock()


class ServerDaemon:
    """One server in a locked folder, on a bound socket."""

    def __init__(
        self,
        settings: ServerSettings,
        folder: DataFolder,
        listener: socket.socket,
        on_ready: Callable[[ServerInfo], None],
        *,
        new_ledger: bool = False,
        wrap: Wrap = as_built,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._listener = listener
        self._on_ready = on_ready
        self._new_ledger = new_ledger
        self._wrap = wrap
        self._farm: FarmServer | None = None
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    async def live(self) -> None:
        """Start up, serve until a signal, shut down."""
        with self._signals():
            farm = self._farm = await FarmServer.open(
                self._settings, self._folder, new_ledger=self._new_ledger, wrap=self._wrap
            )
            try:
                serving = await self._startup(farm)
                await self._serve(serving)
                await self._shutdown(farm, serving)
            finally:
                await farm.close()

    async def _startup(self, farm: FarmServer) -> Serving:
        farm.start()
        serving = Serving(create_app(farm.services), self._listener, self._settings)
        await serving.ready()
        info = server_info(self._settings, self._listener, farm.tokens)
        self._folder.publish(info)
        self._folder.keep_port(self._listener.getsockname()[1])
        try:
            await self._warm(farm)
        except FarmError:
            await serving.stop(force=True)
            raise
        _log.info("serving", url=info.url, data_dir=str(self._folder.root), tasks=len(farm.coordinator.task_views(0.0)))
        self._on_ready(info)
        return serving

    async def _warm(self, farm: FarmServer) -> None:
        """Wait until the server can train, or is told to stop; clients come back meanwhile. Raises: Unavailable."""
        warm, stopped = asyncio.create_task(farm.warm()), asyncio.create_task(self._stop.wait())
        await asyncio.wait({warm, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if warm.done():
            warm.result()
        else:
            warm.cancel()

    async def _serve(self, serving: Serving) -> None:
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopped, serving.task}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    async def _shutdown(self, farm: FarmServer, serving: Serving) -> None:
        _log.info("draining; a second Ctrl-C stops at once")
        draining = asyncio.create_task(farm.drain("the server is going down"))
        forced = asyncio.create_task(self._force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        await serving.stop(force=self._force.is_set())
        draining.cancel()
        forced.cancel()
        await asyncio.gather(draining, forced, return_exceptions=True)
        _log.info("stopped")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals, but those that were ignored when the server started (a shell's background)."""
        loop = asyncio.get_running_loop()

        def interrupted(_number: int, _frame: FrameType | None) -> None:
            # between any two steps of Python code: a loop with seconds of work before it would hear of it after that
            if self._farm is not None:
                self._farm.coordinator.offer_nothing_more()
            loop.call_soon_threadsafe(self._signalled)

        heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        before = [(number, signal.signal(number, interrupted)) for number in heeded]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._force.set()
        self._stop.set()
