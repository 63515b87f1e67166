"""What the connections of a server share: the table of them, the rules for requests, and the log of refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from farm_server.edge.connections import ConnectionBook
from farm_server.edge.credentials import Headers
from farm_server.edge.refusal import Refusal, RefusalLog

HEAD_SECONDS: Final = 10.0
"""A request's head must be here so soon after its first byte, or after its connection was made."""
LATE_SECONDS: Final = 1.0
"""A timer that is later than that is the server's own fault: what came meanwhile is read first."""
UNKNOWN_SECONDS: Final = 300.0
"""Who has shown no token by then may finish a request, and must connect anew for the next one."""


@dataclass(frozen=True, slots=True)
class Linger:
    """After an answer to what was not read to its end: what still comes is thrown away, so that the answer arrives."""

    most_bytes: int
    seconds: float


STRANGERS_LINGER: Final = Linger(256 * 1024, 1.0)
KNOWN_LINGER: Final = Linger(64 * 1024 * 1024, 20.0)


class Guard:
    """``upgrade`` judges a WebSocket's request by its path and headers: a refusal, or None to let it in."""

    def __init__(self, book: ConnectionBook, upgrade: Callable[[str, Headers], Refusal | None]) -> None:
        self.book = book
        self.upgrade = upgrade
        self._refusals = RefusalLog()

    def note(self, refusal: Refusal, address: str) -> None:
        """Log a refusal, at most now and then."""
        self._refusals.note(refusal, address, asyncio.get_running_loop().time())
