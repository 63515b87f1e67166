"""Whether the server can take new work now, and if not, why: the answer for clients, people, watches and the queue."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.events import Event, ServerShort
from farm_server.control.journal import Journal
from farm_server.environment.disk_space import DiskSpace

Reason = Callable[[], str | None]
"""Returns why something is not as it should be, or None."""


class Readiness:
    """``stalled``: what the aggregator waits for. ``troubles``: what only a watch should know."""

    def __init__(self, journal: Journal, disk_space: DiskSpace, stalled: Reason, *troubles: Reason) -> None:
        self._journal = journal
        self._disk_space = disk_space
        self._stalled = stalled
        self._troubles = troubles
        self._draining = False
        self._told: str | None = None

    def drain(self) -> None:
        """Be not ready for good: the server goes down."""
        self._draining = True

    def not_ready(self) -> str | None:
        """Return why the server can take no new work now, or return None."""
        if self._draining:
            return "the server is shutting down"
        return self.short_of()

    def short_of(self) -> str | None:
        """Return what the data folder's disk refuses now, or return None."""
        return self._journal.failure or self._stalled() or self._disk_space.lacks()

    def problem(self) -> str | None:
        """Return what a watch should know: all of ``not_ready``, and the troubles."""
        return self.not_ready() or next((reason for look in self._troubles if (reason := look())), None)

    def tell(self, post: Callable[[Event], None]) -> None:
        """Post an event when the server begins to lack something and when that ends: tasks show it as their reason."""
        lacks = self.short_of() or self._disk_space.refused()
        if (lacks is None) is not (self._told is None):
            self._told = lacks
            post(ServerShort(lacks))
