"""Tells the farm to offer nothing for now, and why, while there is any reason; and when there is none any more."""

from __future__ import annotations

from typing import Final

from farm_client.agent.connection.outgoing import Outgoing
from protocol.messages import Pause, Resume

_MOST_CHARS: Final = 1000


class Pauses:
    """The reasons of this client's parts, by the name of the part. The farm is told of one of them."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._reasons: dict[str, str] = {}
        self._told: str | None = None

    def say(self, part: str, reason: str | None) -> None:
        """Take the reason of a part, or (None) that it has none any more; tell the farm of a change."""
        if reason is None:
            self._reasons.pop(part, None)
        else:
            self._reasons[part] = reason[:_MOST_CHARS]
        told = next(iter(self._reasons.values()), None)
        if told != self._told:
            self._told = told
            self._outgoing.post(Resume() if told is None else Pause(reason=told))

    def ask_again(self) -> None:
        """Have the farm offer anew what this client's owner did not allow before; a pause's end does the same."""
        if self._told is None:
            self._outgoing.post(Resume())

    def say_again(self) -> None:
        """Tell it over a new connection."""
        if self._told is not None:
            self._outgoing.post(Pause(reason=self._told))
