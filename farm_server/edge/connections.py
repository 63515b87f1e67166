"""The open connections, and which of them have shown no token yet. Pure: it reads no clock and closes nothing itself.

A connection is *unknown* until its first request with a token of this farm. Unknown ones are few, all together and from
one address: where one more comes, the one that has been unknown for longest goes. Who sends a request at once is known
(or gone) long before that, so idle connections push out each other and nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Droppable(Protocol):
    """The socket's side of a connection."""

    def drop(self) -> None:
        """Close it at once."""


@dataclass(eq=False, slots=True)
class Connection:
    """One connection from ``address``. ``known``: it has shown a token."""

    address: str
    owner: Droppable
    began_at: float
    known: bool = False
    is_open: bool = field(default=True)


class ConnectionBook:
    """At most ``most`` connections, ``most_unknown`` of them unknown, ``most_unknown_per_address`` from one address."""

    def __init__(self, most: int, most_unknown: int, most_unknown_per_address: int) -> None:
        self._most = most
        self._most_unknown = most_unknown
        self._most_per_address = most_unknown_per_address
        self._count = 0
        self._unknown: dict[Connection, None] = {}
        self._by_address: dict[str, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def unknown_count(self) -> int:
        """How many have shown no token yet."""
        return len(self._unknown)

    def open(self, address: str, owner: Droppable, now: float) -> tuple[Connection, list[Connection]]:
        """Take a connection in; returns it, and those that must be dropped for it (itself, where all others count)."""
        new = Connection(address, owner, now)
        self._count += 1
        self._unknown[new] = None
        of_address = self._by_address.setdefault(address, {})
        of_address[new] = None
        dropped = []
        if len(of_address) > self._most_per_address:
            dropped.append(next(iter(of_address)))
        elif len(self._unknown) > self._most_unknown or self._count > self._most:
            dropped.append(next(iter(self._unknown)))
        for connection in dropped:
            self.close(connection)
        return new, dropped

    def know(self, connection: Connection) -> None:
        """Note that a connection has shown a token."""
        if connection.is_open and not connection.known:
            connection.known = True
            self._forget_unknown(connection)

    def close(self, connection: Connection) -> None:
        """Drop a connection that has ended; once more does nothing."""
        if not connection.is_open:
            return
        connection.is_open = False
        self._count -= 1
        if not connection.known:
            self._forget_unknown(connection)

    def _forget_unknown(self, connection: Connection) -> None:
        del self._unknown[connection]
        of_address = self._by_address[connection.address]
        del of_address[connection]
        if not of_address:
            del self._by_address[connection.address]
