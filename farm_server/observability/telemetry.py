"""What Prometheus reads at ``/metrics``. One registry for each server, so that tests can run several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

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
        self.saved_bytes = Counter(
            "farm_blob_saved_bytes", "Upload bytes that did not have to be sent, by reason", ["why"], registry=registry
        )
        self.commit_seconds = Histogram(
            "farm_commit_seconds", "Optimizer step and checkpoint of a round", buckets=_SECONDS, registry=registry
        )
        self.loop_lag_seconds = Histogram(
            "farm_loop_lag_seconds", "How late the event loop runs its timer", buckets=_SECONDS, registry=registry
        )
        self.clients_online = Gauge("farm_clients_online", "Connected clients", registry=registry)

    def watch_tasks(self, count_by_state: Callable[[], Mapping[str, int]]) -> None:
        """Ask for the number of tasks in each state whenever the page is read."""
        self._registry.register(_TasksByState(count_by_state))

    def watch_uploads(self, credits_in_use: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Ask for both numbers whenever the page is read."""
        held = Gauge("farm_upload_credits_in_use", "Uploads that hold a credit", registry=self._registry)
        queue = Gauge("farm_uploads_waiting", "Uploads that wait for a credit", registry=self._registry)
        held.set_function(credits_in_use)
        queue.set_function(waiting)

    def page(self) -> bytes:
        """Return the text that Prometheus expects."""
        return generate_latest(self._registry)


class _TasksByState(Collector):
    def __init__(self, count_by_state: Callable[[], Mapping[str, int]]) -> None:
        self._count_by_state = count_by_state

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return one gauge with a sample for each state."""
        counts = self._count_by_state()
        family = GaugeMetricFamily("farm_tasks", "Tasks, by state", labels=["state"])
        for state in TaskState:
            family.add_metric([state], counts.get(state, 0))
        return [family]
