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
from farm_server.tensors.aggregator import COMMIT_STAGES
from farm_server.transfers.memory_blobs import MemoryBlobs
from protocol.tasks import TaskSpec


class AggregatorOutcomes:
    """Called on worker threads; everything happens on the event loop that made it, in the order of the calls."""

    def __init__(
        self,
        post: Callable[[Event], None],
        rescue: Rescue,
        memory: MemoryBlobs,
        retention: Retention,
        telemetry: Telemetry,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._post = post
        self._rescue = rescue
        self._memory = memory
        self._retention = retention
        self._telemetry = telemetry

    def event(self, event: Event) -> None:
        """Hand the coordinator an event."""
        self._loop.call_soon_threadsafe(self._post, event)

    def damaged(self, command: OpenRound, message: str) -> None:
        """Begin the search for a fallback of an unreadable checkpoint."""
        self._loop.call_soon_threadsafe(self._rescue.begin, command, message)

    def committed(
        self, spec: TaskSpec, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: Mapping[str, float]
    ) -> None:
        """Take a new version to those who serve it. ``small``: its blobs that a message can carry."""
        self._loop.call_soon_threadsafe(self._committed, checkpoint, small, seconds)

    def durable(self, spec: TaskSpec, checkpoint: CheckpointRecord) -> None:
        """Tell those who remove what a durable version supersedes."""
        self._loop.call_soon_threadsafe(self._durable, spec, checkpoint)

    def _committed(
        self, checkpoint: CheckpointRecord, small: Mapping[str, bytes], seconds: Mapping[str, float]
    ) -> None:
        if checkpoint.manifest is None:
            self._memory.pin(checkpoint.task_id, checkpoint.weights.digest, small)
        for digest, data in small.items():
            self._memory.keep(data, digest)
        self._telemetry.rounds.inc()
        self._telemetry.commit_seconds.observe(sum(seconds[stage] for stage in COMMIT_STAGES))
        for stage, lasted in seconds.items():
            self._telemetry.stage_seconds.labels(stage).inc(lasted)

    def _durable(self, spec: TaskSpec, checkpoint: CheckpointRecord) -> None:
        self._memory.unpin(checkpoint.task_id, checkpoint.weights.digest)
        self._retention.note(checkpoint.task_id, spec.recipe)
