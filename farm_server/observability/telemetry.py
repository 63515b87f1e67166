"""What Prometheus reads at ``/metrics``. One registry for each server, so that tests can run several."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from coordinator.lifecycle import TaskState
from farm_server.observability.wire_counters import WireCounters

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Telemetry:
    """The server's counters. Count through the attributes; ``page`` renders all."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.rounds = Counter("farm_rounds_committed", "Rounds committed", registry=registry)
        self.updates = Counter("farm_updates", "Results that arrived, by outcome", ["outcome"], registry=registry)
        self.wire = WireCounters()
        registry.register(self.wire)
        self.blob_bytes = Counter("farm_blob_bytes", "Blob bytes, by direction", ["direction"], registry=registry)
        self.compute_seconds = Counter(
            "farm_compute_seconds", "Seconds that clients computed for usable results", registry=registry
        )
        self.stage_seconds = Counter(
            "farm_stage_seconds", "Seconds that parts of rounds took, by stage", ["stage"], registry=registry
        )
        self.saved_bytes = Counter(
            "farm_blob_saved_bytes", "Upload bytes that did not have to be sent, by reason", ["why"], registry=registry
        )
        self.commit_seconds = Histogram(
            "farm_commit_seconds", "Optimizer step and checkpoint of a round", buckets=_SECONDS, registry=registry
        )
        self.loop_lag_seconds = Histogram(
            "farm_loop_lag_seconds", "How late the event loop runs its timer", buckets=_SECONDS, registry=registry
        )
        self._tasks = Gauge("farm_tasks", "Tasks, by state", ["state"], registry=registry)
        self.clients_online = Gauge("farm_clients_online", "Connected clients", registry=registry)

    def watch_uploads(self, credits_in_use: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask for both numbers whenever the page is read."""
        held = Gauge("farm_upload_credits_in_use", "Uploads that hold a credit", registry=self._registry)
        queue = Gauge("farm_uploads_waiting", "Uploads that wait for a credit", registry=self._registry)
        held.set_function(credits_in_use)
        queue.set_function(waiting)

    def page(self, tasks_by_state: Mapping[TaskState, int]) -> bytes:
        """Return the text that Prometheus expects; the ledger counts the tasks."""
        for state in TaskState:
            self._tasks.labels(state).set(tasks_by_state.get(state, 0))
        return generate_latest(self._registry)
