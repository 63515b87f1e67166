"""The services that routes depend on: one narrow interface for each concern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.websockets import WebSocket

from farm_server.clients.certificates import Certificates
from farm_server.clients.directory import ClientDirectory
from farm_server.clients.leaderboard import Leaderboard
from farm_server.edge.entrance import Entrance
from farm_server.environment.settings import ServerSettings
from farm_server.environment.tokens import Tokens
from farm_server.housekeeping.disk_usage import DiskUsage
from farm_server.http.bulk import Traffic
from farm_server.http.callers import Callers
from farm_server.http.farm_status import FarmStatus
from farm_server.tasks.commands import TaskCommands
from farm_server.tasks.feeds import Feeds
from farm_server.tasks.queries import TaskQueries
from farm_server.transfers.blob_access import BlobAccess
from farm_server.transfers.uploads import Uploads


class Connections(Protocol):
    """Who keeps the volunteers' connections."""

    async def serve(self, websocket: WebSocket) -> None:
        """Keep one connection from its handshake to its end."""


@dataclass(frozen=True, slots=True)
class Services:
    """Each route takes the one that it needs, by its dependency in ``access``; the application is made of all."""

    settings: ServerSettings
    tokens: Tokens
    entrance: Entrance
    connections: Connections
    tasks: TaskQueries
    commands: TaskCommands
    feeds: Feeds
    clients: ClientDirectory
    leaderboard: Leaderboard
    certificates: Certificates
    blobs: BlobAccess
    uploads: Uploads
    traffic: Traffic
    callers: Callers
    disk: DiskUsage
    status: FarmStatus
