"""The farm at a glance, from all rooms: for ``/v1/farm``, the status page, and monitoring."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from farm_server.clients.directory import ClientDirectory
from farm_server.clients.gateway import Gateway
from farm_server.clients.leaderboard import Leaderboard
from farm_server.control.readiness import Readiness
from farm_server.environment.clock import Clock
from farm_server.observability.alarms import Alarms
from farm_server.observability.telemetry import Telemetry
from farm_server.tasks.queries import TaskQueries
from farm_server.transfers.uploads import Uploads
from protocol.features import FEATURES
from protocol.limits import INLINE_BYTES
from protocol.rest import FarmView


@dataclass(frozen=True, slots=True)
class FarmStatus:
    """Reads, and changes nothing. ``started_at`` is on the server's clock."""

    name: str
    clock: Clock
    started_at: float
    readiness: Readiness
    telemetry: Telemetry
    alarms: Alarms
    tasks: TaskQueries
    clients: ClientDirectory
    leaderboard: Leaderboard
    gateway: Gateway
    uploads: Uploads

    def view(self) -> FarmView:
        """Return name, version and counts."""
        received, sent = self.telemetry.wire.views()
        return FarmView(
            name=self.name,
            version=version("aifarm"),
            clients_online=self.clients.online_count(),
            tasks_active=self.tasks.active_count(),
            inline_bytes=INLINE_BYTES,
            features=tuple(FEATURES),
            started_at=self.started_at,
            problem=self.readiness.not_ready(),
            pace=self.gateway.pace_view(),
            received=received,
            sent=sent,
            uploads_open=self.uploads.open_count,
            uploads_waiting=self.uploads.waiting_count,
        )
