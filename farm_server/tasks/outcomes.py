"""What follows from the work of the aggregator's threads: for the coordinator, for a damaged task, for readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from coordinator.commands import OpenRound
from coordinator.events import Event
from coordinator.records import CheckpointRecord
from farm_server.housekeeping.retention import Retention
from farm_server.observability.telemetry import Telemetry
from farm_server.tasks.rescue import Rescue
from farm_server.transfers.inline_blobs import InlineBlobs
from protocol.tasks import TaskSpec


class AggregatorOutcomes:
    """Called on worker threads; everything happens on the event loop that made it, in the order of the calls."""

    def __init__(
        self,
        post: Callable[[Event], None],
        rescue: Rescue,
        inline: InlineBlobs,
        retention: Retention,
        telemetry: Telemetry,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._post = post
        self._rescue = rescue
        self._inline = inline
        self._retention = retention
        self._telemetry = telemetry

    def event(self, event: Event) -> None:
        """Hand the coordinator an event."""
        self._loop.call_soon_threadsafe(self._post, event)

    def damaged(self, command: OpenRound, message: str) -> None:
        """Begin the search for a fallback of an unreadable checkpoint."""
        self._loop.call_soon_threadsafe(self._rescue.begin, command, message)

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: float
    ) -> None:
        """Take a new version to those who serve it. ``small``: its blobs that can ride inline."""
        self._loop.call_soon_threadsafe(self._committed, spec, checkpoint, small, seconds)

    def _committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: float
    ) -> None:
        if checkpoint.manifest is None:
            self._inline.pin(checkpoint.task_id, checkpoint.weights.digest, small[checkpoint.weights.digest])
        else:
            self._inline.unpin(checkpoint.task_id)
            for digest, data in small.items():
                self._inline.keep(data, digest)
            self._retention.note(checkpoint.task_id, spec.recipe)
        self._telemetry.rounds.inc()
        self._telemetry.commit_seconds.observe(seconds)
