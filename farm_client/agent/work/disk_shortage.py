"""Pauses this client while its disk is full, with the reason, and resumes when it has room."""

from __future__ import annotations

from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.errors import HomeGone
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.reporting.display import Display
from farm_client.agent.work.held_assignment import Held
from farm_client.agent.work.pauses import Pauses
from protocol.assignments import Reject, RejectCode
from protocol.messages import Error, Scope


class DiskShortage:
    """Looked for at each heartbeat, and whenever an assignment has failed. ``reason`` is None where there is none."""

    def __init__(self, home: HomeFolder, fetcher: Fetcher, pauses: Pauses, display: Display) -> None:
        self._home = home
        self._fetcher = fetcher
        self._pauses = pauses
        self._display = display
        self.reason: str | None = None

    def look(self) -> bool:
        """Check the disk, and report a change; return whether a shortage has just ended."""
        before, self.reason = self.reason, self._find()
        if (self.reason is None) == (before is None):
            return False
        self._pauses.say("disk", self.reason)
        self._display.lacks(self.reason)
        return self.reason is None

    def excuse(self, held: Held, problem: Error | Reject) -> Error | Reject:
        """Return what to say of a failed assignment: where the disk takes nothing, that says nothing against it."""
        self.look()
        if self.reason is None or isinstance(problem, Reject) or problem.scope is Scope.NOBODY:
            return problem
        return held.reject(RejectCode.BLOB_UNAVAILABLE, self.reason)

    def _find(self) -> str | None:
        try:
            return self._home.lack() or self._fetcher.cache.lack()
        except HomeGone as error:
            return error.message
