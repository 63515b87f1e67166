"""How the farm was reached so far, and what follows from a failure: how long to wait, or that there is no use in it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from farm_client.agent.errors import Displaced, NotAFarm, OutOfReach
from farm_client.agent.home.known_farms import KnownFarms
from protocol.retry import RetryPolicy, later_than

RECONNECT: Final = RetryPolicy(first_seconds=0.5, longest_seconds=30.0, growth=1.1)
"""Slow to grow: a server that restarts is back in seconds, and work must go on within five of its start. A wait stays
about two seconds at most for the first five of an outage, and reaches half a minute after some minutes."""

STEADY_SECONDS: Final = 3.0
"""A connection that held for so long was a success, whatever ended it: at this pace nobody is stormed."""
COSTLY: Final = RetryPolicy(first_seconds=0.5, longest_seconds=30.0)
"""Quick to grow: each of these tries cost the farm a whole join, or most of one."""

DISPLACED: Final = RetryPolicy(first_seconds=2.0, longest_seconds=600.0)
"""Another machine works under this identity: each return would take its work away."""


class Reconnecting:
    """How long to wait before the next connection: by what went wrong since the farm last let this client in.

    A welcome ends an outage: the wait that had grown is forgotten. Only connections that end soon after their
    welcome, one after another, keep counting, so that a farm that welcomes and drops at once is not stormed. Nor is
    one that has too much to do to answer in time: what was begun for that try is lost work of the farm's.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._unreached = 0
        self._slow = 0
        self._brief = 0
        self._displaced = 0
        self._asked_seconds = 0.0

    def displaced(self) -> None:
        """Count a time that another machine had this one's identity."""
        self._displaced += 1

    def failed(self, *, was_slow: bool = False, retry_after_seconds: float = 0.0) -> None:
        """Count a try that led to no welcome; ``was_slow``: in the time that it was given. It may be told to wait."""
        self._unreached += 1
        self._slow += was_slow
        self._asked_seconds = retry_after_seconds

    def ended(self, held_seconds: float) -> None:
        """Count a connection that was welcomed and held for so long."""
        self._unreached = self._slow = 0
        self._asked_seconds = 0.0
        self._brief = 0 if held_seconds >= STEADY_SECONDS else self._brief + 1
        if held_seconds >= DISPLACED.longest_seconds:  # less, and two that take turns would quicken each other
            self._displaced = 0

    def delay_seconds(self) -> float:
        """Draw the wait before the next try: what a farm asked for is the least."""
        waits = [RECONNECT.delay_seconds(self._unreached, self._draw())]
        waits += [COSTLY.delay_seconds(count, self._draw()) for count in (self._slow, self._brief) if count]
        if self._displaced:  # never at once: half of it is certain
            waits.append(later_than(DISPLACED.bound_seconds(self._displaced) / 2, self._draw()))
        return max(waits) + later_than(self._asked_seconds, self._draw())


STRANGERS_SECONDS: Final = 10.0
"""An address that never welcomed this machine may answer so long as no farm does, until it counts as a wrong one."""


class ReconnectPolicy:
    """The way to one address, without its token. ``give_up_seconds``: the owner's limit to an outage; None for none."""

    def __init__(self, address: str, welcomed_by: KnownFarms, give_up_seconds: float | None) -> None:
        self._address = address
        self._welcomed_by = welcomed_by
        self._give_up_seconds = give_up_seconds
        self._reconnecting = Reconnecting()
        self._unreached_since = time.monotonic()
        self._connected_at = 0.0
        self._strange_since: float | None = None
        """Since when every answer was one that no farm gives, where no farm was ever met."""

    def welcomed(self) -> None:
        """Record a connection."""
        self._connected_at = time.monotonic()
        self._strange_since = None
        self._welcomed_by.add(self._address)

    def failed(self, error: OutOfReach) -> float:
        """Record a try that led to no welcome; return how many seconds to wait before the next.

        Raises: what makes it the last one: an address where no farm was ever met and where for a while nothing else
            answered than no farm, or the owner's limit.
        """
        self._look_for_wrong_address(error)
        if isinstance(error, Displaced):
            self._reconnecting.displaced()
        else:
            self._reconnecting.failed(was_slow=error.was_slow, retry_after_seconds=error.retry_after_seconds)
        return self._wait_seconds(error)

    def ended(self, error: OutOfReach) -> float:
        """Record a connection's end; return how many seconds to wait. Raises: as ``failed``."""
        self._unreached_since = time.monotonic()
        self._reconnecting.ended(self._unreached_since - self._connected_at)
        if isinstance(error, Displaced):
            self._reconnecting.displaced()
        return self._wait_seconds(error)

    def _look_for_wrong_address(self, error: OutOfReach) -> None:
        if not isinstance(error, NotAFarm) or self._address in self._welcomed_by:
            self._strange_since = None
            return
        now = time.monotonic()
        self._strange_since = self._strange_since or now
        if now - self._strange_since >= STRANGERS_SECONDS:
            raise error.final() from error

    def _wait_seconds(self, error: OutOfReach) -> float:
        away_seconds = time.monotonic() - self._unreached_since
        if self._give_up_seconds is not None and away_seconds > self._give_up_seconds:
            raise OutOfReach(
                f"{error.message}; gave up after {away_seconds:.0f} s; check the address and the network"
            ) from error
        return self._reconnecting.delay_seconds()
