"""Pauses this client while its disk is full, with the reason, and resumes when it has room."""

from __future__ import annotations

from farm_client.agent.blobs.fetcher import Fetcher
from farm_client.agent.connection.outgoing import Outgoing
from farm_client.agent.errors import HomeGone
from farm_client.agent.home.folder import HomeFolder
from farm_client.agent.reporting.display import Display
from protocol.messages import Pause, Resume


class DiskShortage:
    """Looked for at each heartbeat, and whenever an assignment has failed. ``reason`` is None where there is none."""

    def __init__(self, home: HomeFolder, fetcher: Fetcher, outgoing: Outgoing, display: Display) -> None:
        self._home = home
        self._fetcher = fetcher
        self._outgoing = outgoing
        self._display = display
        self.reason: str | None = None

    def report_again(self) -> None:
        """Send it over a new connection."""
        if self.reason is not None:
            self._outgoing.post(Pause(reason=self.reason))

    def look(self) -> bool:
        """Check the disk, and report a change; return whether a shortage has just ended."""
        before, self.reason = self.reason, self._find()
        if (self.reason is None) == (before is None):
            return False
        self._outgoing.post(Resume() if self.reason is None else Pause(reason=self.reason))
        self._display.lacks(self.reason)
        return self.reason is None

    def _find(self) -> str | None:
        try:
            return self._home.lack() or self._fetcher.cache.lack()
        except HomeGone as error:
            return error.message
