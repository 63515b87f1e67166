"""Transfers for callers without an event loop: each call runs one of its own until its transfers are done.

A Ctrl-C meanwhile is asked for until it has happened: asyncio's handler cancels the task once, and raises
KeyboardInterrupt only if that ends it. A cancel can get lost on its way through a library that swallows it, and the
Ctrl-C with it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, TypeVar, cast
from uuid import uuid4

import httpx

from farm_client.sdk.answers import explaining
from farm_client.sdk.api import FarmApi
from farm_client.transfer.carrier import CLIENT_HEADER, RETRY, TIMEOUT, Carrier
from protocol.errors import FarmError, Unavailable


class TransferRefused(FarmError):
    """The farm answered that it takes no transfer now."""


_NAME: Final = f"farm-{uuid4().hex[:12]}"
"""Of this process, for the farm's turns and limits."""
T = TypeVar("T")


def carry(api: FarmApi, work: Callable[[Carrier], Coroutine[Any, Any, T]]) -> T:
    """Do ``work`` with a way to the farm's blobs, and block until it is done.

    It is begun again while no farm answers, for as long as the API tries: what it has moved stays moved.
    Ctrl-C cancels it, so that it can keep what it has, and is raised when it has ended.
    Raises: FarmUnreachable where ``work`` raises Unavailable because no farm answers; what else ``work`` raises.
    """

    async def run() -> T:
        headers = {CLIENT_HEADER: _NAME}
        async with api.open_async(timeout=TIMEOUT, headers=headers) as http:
            with api.open_bulk(timeout=TIMEOUT, headers=headers) as bulk:
                return await work(Carrier(http, bulk, RETRY))

    def once() -> T:
        try:
            return run_interruptible(run())
        except Unavailable as error:
            if isinstance(error.__cause__, httpx.RequestError):
                with explaining(api.address):
                    raise error.__cause__ from None
            # The farm's own answer, such as of a full disk: the tries of the transfer were all that it is worth.
            raise TransferRefused(error.message) from error

    try:
        return api.retry.call(once)
    except TransferRefused as refused:
        raise Unavailable(refused.message) from refused.__cause__


class Forward:
    """Turns how many bytes are there so far into how many more there are; that a cut loses some is left out."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._told_bytes = 0

    def __call__(self, count: int) -> None:
        """Take how many bytes are there."""
        if count > self._told_bytes:
            self._advance(count - self._told_bytes)
            self._told_bytes = count


_AGAIN_SECONDS: Final = 0.2


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in a loop of its own, as ``asyncio.run`` does; beside one that runs here, as in a notebook.

    Raises: KeyboardInterrupt if there was a Ctrl-C, when the coroutine has ended, however it did.
    """
    if _loop_runs_here():
        return _run_on_a_thread(work)
    interrupt = _Interrupt()
    try:
        outcome = asyncio.run(interrupt.handled_during(work) if _is_handled_here() else work)
    except BaseException:
        if interrupt.came:
            raise KeyboardInterrupt from None
        raise
    if interrupt.came:
        raise KeyboardInterrupt
    return outcome


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_on_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine on a thread, and block this one meanwhile; a Ctrl-C here cancels it."""
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()
    ended: Future[T] = Future()

    async def announced() -> T:
        begun.set_result((asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())))
        return await work

    def run() -> None:
        try:
            ended.set_result(asyncio.run(announced()))
        except BaseException as error:
            ended.set_exception(error)

    if _is_interrupted(threading.Thread(target=run, name="transfers", daemon=True), begun, ended):
        raise KeyboardInterrupt
    return ended.result()


def _is_interrupted(
    thread: threading.Thread,
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]],
    ended: Future[Any],
) -> bool:
    """Start the thread and wait for its end, cancelling it from a Ctrl-C on; return whether there was one.

    No wait is without an end: a Ctrl-C that comes just before one does not wake it, and is raised after it.
    """
    came = False
    try:
        thread.start()
    except KeyboardInterrupt:  # while it waited for the thread, which runs
        came = True
    while not ended.done():
        try:
            ended.exception(_AGAIN_SECONDS)
        except KeyboardInterrupt:
            came = True
        except TimeoutError:
            if came:
                loop, task = begun.result()
                with suppress(RuntimeError):  # it ended a moment ago, and its loop with it
                    loop.call_soon_threadsafe(task.cancel)
    return came


def _is_handled_here() -> bool:
    """Whether a Ctrl-C is ours to handle: only in the main thread, and not where somebody wants it otherwise."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return is_default and threading.current_thread() is threading.main_thread()


class _Interrupt:
    def __init__(self) -> None:
        self.came = False

    async def handled_during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work; each Ctrl-C cancels it."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        loop.add_signal_handler(signal.SIGINT, self._come, task)
        try:
            return await task
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    def _come(self, task: asyncio.Future[Any]) -> None:
        self.came = True
        if not task.done():
            task.cancel()
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._come, task)
