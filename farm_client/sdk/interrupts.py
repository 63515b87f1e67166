"""Ctrl-C during an event loop of our own: asked for until it has happened, and never forgotten.

asyncio's handler cancels the task once, and raises KeyboardInterrupt only if that ends it. A cancel can get lost on its
way through a library that swallows it, and the Ctrl-C with it.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

_AGAIN_SECONDS: Final = 0.2
T = TypeVar("T")


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in a loop of its own, as ``asyncio.run`` does.

    Raises: KeyboardInterrupt if there was a Ctrl-C, when the coroutine has ended, however it did.
    """
    interrupt = _Interrupt()
    try:
        outcome = asyncio.run(interrupt.heard_during(work) if _is_heard_here() else work)
    except BaseException:
        if interrupt.came:
            raise KeyboardInterrupt from None
        raise
    if interrupt.came:
        raise KeyboardInterrupt
    return outcome


def _is_heard_here() -> bool:
    """Whether a Ctrl-C is ours to hear: only in the main thread, and not where somebody wants it otherwise."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return is_default and threading.current_thread() is threading.main_thread()


class _Interrupt:
    def __init__(self) -> None:
        self.came = False

    async def heard_during(self, work: Coroutine[Any, Any, T]) -> T:
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
