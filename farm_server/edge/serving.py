"""uvicorn on a socket that is bound already, with the signals left to the daemon, and guarded connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI

from farm_server.edge.guard import Guard
from farm_server.edge.http_protocol import GuardedHttp
from farm_server.edge.websocket_protocol import GuardedWebSocket
from farm_server.environment.settings import ServerSettings

_GRACE_SECONDS = 3


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon."""
        yield


class Serving:
    """Serves from its making until ``stop``."""

    def __init__(self, app: FastAPI, listener: socket.socket, settings: ServerSettings) -> None:
        self.guard: Guard = app.state.guard
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=cast("type[asyncio.Protocol]", partial(GuardedHttp, self.guard)),
            ws=GuardedWebSocket,
            ws_max_size=settings.max_frame_bytes,
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # clients beat by themselves
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = _Server(config)
        self.task = asyncio.create_task(self._server.serve([listener]), name="uvicorn")

    async def ready(self) -> None:
        """Wait until connections are accepted. Raises what keeps uvicorn from it."""
        while not self._server.started:
            if self.task.done():
                self.task.result()
                raise RuntimeError("uvicorn stopped before it had started")
            await asyncio.sleep(0.005)

    async def stop(self, *, force: bool) -> None:
        """Stop accepting, let requests end (unless forced), and wait until all is closed."""
        self._server.should_exit = True
        self._server.force_exit = force
        await self.task
