"""Blocking work in a thread, awaited by an event loop that may cancel it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

_STOP_SECONDS: Final = 1.0
T = TypeVar("T")


async def in_thread(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """Do ``work`` in a thread of its own and return what it returns, or raise what it raises.

    If this is cancelled, ``stop`` is called, and the thread has a second to end. One that does not, because it waits
    for a farm that says nothing, is left behind: it is a daemon, and keeps no process from ending.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        problem: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # whoever awaits it gets it
            problem = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([outcome], timeout=_STOP_SECONDS)
        if outcome.done() and not outcome.cancelled():
            outcome.exception()  # seen: what a stopped thread says is of no interest
        else:
            outcome.cancel()
        raise
