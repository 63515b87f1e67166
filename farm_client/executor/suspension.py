"""The agent's order to suspend, as the steps meet it: looked for between two of them, and obeyed to the end."""

from __future__ import annotations

import os
from typing import NoReturn

from farm_client.executor.channel import Channel
from farm_client.executor.messages import Suspend, Suspended


class Suspension:
    """Of a channel whose orders somebody else takes: this one is only looked at, until it is there."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def is_ordered(self) -> bool:
        """Whether to suspend now; asks the system once, and waits for nothing.

        Raises: ProtocolError, ValidationError for an order of no form.
        """
        return self._channel.has_order() and isinstance(self._channel.next_order(), Suspend)

    def obey(self) -> NoReturn:
        """Report that nothing more is done, and wait to be ended; a process whose agent is gone ends itself."""
        self._channel.send(Suspended())
        while self._channel.receive() is not None:
            pass
        os._exit(0)
