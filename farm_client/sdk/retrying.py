"""Calls tried again, up to a limit, while the farm does not answer: a restart, a broken link, a proxy without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

from farm_client.sdk.errors import FarmUnreachable
from protocol.errors import FarmError, Unavailable

RETRY_SECONDS: Final = 60.0
AWAY: Final = (FarmUnreachable, Unavailable)
"""What a farm answers, or what is answered in its place, while it stops and starts."""
STEP_SECONDS: Final = 0.5
T = TypeVar("T")


class MonotonicClock(Protocol):
    """What the ``time`` module has of it."""

    def monotonic(self) -> float:
        """Return seconds that only grow."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class RetryWhileAway:
    """One for a whole command.

    It begins with the farm's first answer: a wrong address is an error at once. ``from_start``: at once, for commands
    that do nothing but wait, and may be called while the farm restarts. ``notify`` is given a line when the farm is
    away, and when it is back.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        notify: Callable[[str], None] = lambda _: None,
        clock: MonotonicClock | None = None,
        *,
        from_start: bool = False,
    ) -> None:
        self.seconds = seconds
        self._notify = notify
        self._clock: MonotonicClock = clock or time
        self._has_begun = from_start
        self._is_suspended = False
        self._away_since: float | None = None

    def call(self, request: Callable[[], T]) -> T:
        """Return the answer to a request that may be sent again. Raises: what it raises, once the time is up."""
        while True:
            try:
                answer = request()
            except AWAY as error:
                if self._is_suspended or not self._has_begun:
                    raise
                self.failed(error)
                self._clock.sleep(STEP_SECONDS)
            else:
                self.answered()
                return answer

    def answered(self) -> None:
        """Count an answer of the farm."""
        self._has_begun = True
        if self._away_since is not None and not self._is_suspended:
            self._away_since = None
            self._notify("the farm answers again")

    def failed(self, error: FarmError) -> None:
        """Count a call that the farm did not answer. Raises: ``error`` if it has been away for too long."""
        now = self._clock.monotonic()
        if self._away_since is None:
            self._away_since = now
            if self.seconds and not self._is_suspended:
                self._notify(f"{error.message}; waiting for it, {self.seconds:g} s at most")
        if now - self._away_since >= self.seconds:
            raise error

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Within the block ``call`` tries once and notifies nobody: the caller shows that the farm is away."""
        self._is_suspended = True
        try:
            yield
        finally:
            self._is_suspended = False
            self._away_since = None
