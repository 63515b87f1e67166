"""What must happen from time to time, and the blobs that nothing refers to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from farm_server.environment.settings import ServerSettings
from protocol.errors import FarmError
from storage.ports.blob_store import BlobStore
from storage.ports.ledger import Ledger

_log = structlog.get_logger(__name__)

_LATE_SECONDS: Final = 0.5
"""A tick that is later than that is the server's own fault (stopped, suspended, swapping), and nobody else's delay."""


async def every(seconds: float, work: Callable[[], Awaitable[None]], what: str) -> None:
    """Do ``work`` again and again, ``seconds`` apart; a failure is logged, and the next time is another chance."""
    while True:
        await asyncio.sleep(seconds)
        await once(work, what)


async def once(work: Callable[[], Awaitable[None]], what: str) -> None:
    """Do ``work``; a failure is logged."""
    try:
        await work()
    except FarmError as error:
        _log.warning(f"{what} failed", code=error.code, error=error.message)
    except Exception:
        _log.exception(f"{what} failed")


async def collect_blobs(ledger: Ledger, blobs: BlobStore, settings: ServerSettings) -> None:
    """Delete blobs that nothing refers to, once they are older than an upload may wait for its submission."""
    referenced = await ledger.referenced_digests(time.time() - settings.keep_inputs_seconds)
    collected = await asyncio.to_thread(blobs.collect, referenced, settings.blob_grace_seconds, time.time())
    if collected.count:
        _log.info("unreferenced blobs collected", blobs=collected.count, bytes=collected.bytes)


async def ticks(seconds: float, tick: Callable[[float, float], None]) -> None:
    """Tick again and again; report how late each one is, and for how long of that the server itself stood still."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + seconds
        await asyncio.sleep(seconds)
        lag_seconds = max(loop.time() - due, 0.0)
        tick(lag_seconds, lag_seconds if lag_seconds > _LATE_SECONDS else 0.0)
