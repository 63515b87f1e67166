"""The clients as people and routes see them: who is known, who is connected, and the removal of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from coordinator.events import ClientRemoved, Event
from coordinator.links import links_view
from farm_server.clients.registry import Registry
from farm_server.environment.clock import Clock
from protocol.rest import ClientView, LinksView


class ClientViews(Protocol):
    """What the coordinator shows of the clients. ``now`` is the server's clock."""

    def client_views(self, now: float, newest: int | None = None) -> list[ClientView]:
        """Return all known clients, or the newest so many, the connected ones first."""

    def client_count(self) -> int:
        """Return how many are known."""

    def client_name(self, client_id: str) -> str:
        """Return what one is called; empty for one that is not known."""


class ClientDirectory:
    """``ask`` hands the coordinator an event, and returns once all that it decided is durable."""

    def __init__(
        self, shown: ClientViews, registry: Registry, clock: Clock, ask: Callable[[Event], Awaitable[None]]
    ) -> None:
        self._shown = shown
        self._registry = registry
        self._clock = clock
        self._ask = ask

    def views(self, newest: int | None = None) -> list[ClientView]:
        """Return every client with its resources, load and standing; or the newest so many."""
        return self._shown.client_views(self._clock.now(), newest)

    def links(self) -> LinksView:
        """Return what the clients measured of their links, in short."""
        return links_view(self.views())

    def known_count(self) -> int:
        """Return how many clients are known."""
        return self._shown.client_count()

    def client_name(self, client_id: str) -> str:
        """Return what a client is called; empty for one that is not known (any more)."""
        return self._shown.client_name(client_id)

    def online_count(self) -> int:
        """Return how many are connected now."""
        return len(self._registry)

    def is_connected(self, client_id: str, address: str) -> bool:
        """Whether that client is connected from that address."""
        return self._registry.is_connected(client_id, address)

    async def remove(self, client_id: str, *, force: bool) -> None:
        """Drop a client; ``force``: close its connection first. Durable on return. Raises: NotFound; Conflict."""
        await self._ask(ClientRemoved(client_id, force))
