"""One connection: two ordered streams with delays. It can be cut without either side hearing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protocol.messages import Message

if TYPE_CHECKING:
    from tests.simulation.client import Client
    from tests.simulation.world import World


class Connection:
    """Messages of one direction arrive in order or, once it is cut, never; connections overtake each other."""

    def __init__(self, world: World, client: Client) -> None:
        self.client = client
        self.client_id = client.client_id
        self.incarnation = 0
        self.alive = True
        """Whether messages still get through; each side finds out for itself when not."""
        self.last_heard = 0.0
        self.in_check = 0
        """Results that the server has and is still checking."""
        self.overtaken = 0
        """How many of them a ``Ready`` overtook: their slots are in its number already, and come once more."""
        self._world = world
        self._last_arrival = {"up": 0.0, "down": 0.0}

    def up(self, message: Message) -> None:
        """Send from the client to the server."""
        server = self._world.server
        if server is not None:
            self._send("up", lambda: server.receive(self, message))

    def down(self, message: Message) -> None:
        """Send from the server to the client."""
        self._send("down", lambda: self.client.receive(self, message))

    def cut(self) -> None:
        """Lose all that is under way, and all that will be sent."""
        self.alive = False

    def _send(self, direction: str, deliver: Callable[[], None]) -> None:
        sent = max(self._world.agenda.now, self.client.partitioned_until)
        arrival = max(sent + self._world.weather.latency_seconds(), self._last_arrival[direction])
        self._last_arrival[direction] = arrival
        self._world.agenda.at(arrival, lambda: self._arrive(deliver))

    def _arrive(self, deliver: Callable[[], None]) -> None:
        if self.alive:
            deliver()
