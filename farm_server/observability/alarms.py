"""The newest alarming events, for the status page: what an operator must not miss."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from coordinator.records import Entry, EventRecord

LOUD: Final = frozenset({"checkpoint_damaged", "server_defect"})
_SHOWN = 5


class Alarms:
    """Looks at every saved entry and keeps the alarming ones of this run of the server. On the event loop."""

    def __init__(self) -> None:
        self._newest: deque[EventRecord] = deque(maxlen=_SHOWN)

    def hear(self, entries: Iterable[Entry]) -> None:
        """Keep what is loud."""
        self._newest.extend(e for e in entries if isinstance(e, EventRecord) and e.kind in LOUD)

    def newest_first(self) -> list[EventRecord]:
        """Return the alarms."""
        return list(reversed(self._newest))
