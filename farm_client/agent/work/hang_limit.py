"""Ends what an executor does when it gets no further for as long as its lease.

The farm ends such a lease too, but only while there is a connection, and without knowing why: a process that is stopped
or hangs in C would hold the machine for ever else. Both look for the same: samples, or another phase.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from farm_client.agent.errors import ExecutorDied
from farm_client.executor.postmortem import HUNG, ProcessDeath


class HangLimit:
    """``seconds``: how long nothing may get on; None: for ever. One block at a time."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout: asyncio.Timeout | None = None

    @asynccontextmanager
    async def over(self, doing: Callable[[], str]) -> AsyncIterator[None]:
        """Cancel what a block awaits when nothing got on for too long. ``doing`` says in the end what it was.

        Raises: ExecutorDied in that case. Whoever runs the executor kills it then, as after any cancellation.
        """
        try:
            async with asyncio.timeout(self._seconds) as self._timeout:
                yield
        except TimeoutError:
            if self._timeout is None or not self._timeout.expired():
                raise  # somebody else's
            sentence = f"the executor hung and was ended: it got no further for {self._seconds:.0f} s"
            raise ExecutorDied(ProcessDeath(HUNG, sentence), doing(), ()) from None
        finally:
            self._timeout = None

    def got_on(self) -> None:
        """Count anew: something was done."""
        if self._seconds is not None:
            self._move(asyncio.get_running_loop().time() + self._seconds)

    def lift(self) -> None:
        """Wait for ever from now on, until the next block."""
        self._move(None)

    def _move(self, when: float | None) -> None:
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(when)
