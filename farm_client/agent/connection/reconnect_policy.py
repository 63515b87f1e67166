"""How the farm was reached so far, and what follows from a failure: how long to wait, or that there is no use in it."""

from __future__ import annotations

import time
from typing import Final

from farm_client.agent.connection.backoff import Reconnecting
from farm_client.agent.errors import Displaced, NotAFarm, OutOfReach
from farm_client.agent.home.known_farms import KnownFarms

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
        """Take notice of a connection."""
        self._connected_at = time.monotonic()
        self._strange_since = None
        self._welcomed_by.add(self._address)

    def failed(self, error: OutOfReach) -> float:
        """Take notice of a try that led to no welcome; return how many seconds to wait before the next.

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
        """Take notice of a connection's end; return how many seconds to wait. Raises: as ``failed``."""
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
