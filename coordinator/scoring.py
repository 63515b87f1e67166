"""The score of a client for a task: a weighted sum of documented terms, each from 0 to 1.

``farm explain TASK`` prints them. The score ranks eligible clients; who may take part at all is ``eligibility``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Final

from coordinator.state import ClientState, TaskRun
from protocol.rest import ScoreTerm
from protocol.wording import sized

WEIGHTS: Final = {
    "throughput": 0.35,
    "memory": 0.15,
    "reliability": 0.2,
    "cached": 0.2,
    "load": 0.1,
    "environment": 0.1,
}
"""The last one comes on top, for tasks that have an environment."""
_SHORTLIST: Final = 256
_MOST_BYTES: Final = 2**63
_LEAST_GFLOPS: Final = 1e-6
_MOST_GFLOPS: Final = 1e9
"""From a machine of the 1950s to an exaflop: anything else is no measurement."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the score of one (client, task) pair is computed from.

    ``speed`` and ``best_speed`` in samples per second, sizes in bytes, ``cpu`` and ``gpu`` are used shares.
    """

    speed: float
    measured: bool
    best_speed: float
    free_bytes: int
    needed_bytes: int
    delivered: int
    failed: int
    cached_bytes: int
    data_bytes: int
    cpu: float
    held: int
    has_environment: bool | None = None
    """None: the task has none."""


def reliability(delivered: int, failed: int) -> float:
    """Estimate the chance that an assignment is delivered (Laplace's rule of succession)."""
    return (delivered + 1) / (delivered + failed + 2)


def score(facts: Facts) -> tuple[ScoreTerm, ...]:
    """Return the terms; the score is the sum of their contributions.

    throughput: speed against the fastest known client. memory: free memory beyond what the task needs, full marks
    at twice the need. reliability: delivered against failed assignments. cached: the share of the task's data that
    the client holds. load: idle CPU, halved for each assignment held. environment: whether the client has the task's,
    where it has one.
    """
    memory = min(max(facts.free_bytes / max(facts.needed_bytes, 1) - 1, 0.0), 1.0)
    values = {
        "throughput": (
            facts.speed / facts.best_speed if facts.best_speed else 0.5,
            f"{facts.speed:.0f} samples/s {'measured' if facts.measured else 'expected'}",
        ),
        "memory": (memory, f"{sized(facts.free_bytes)} free, {sized(facts.needed_bytes)} needed"),
        "reliability": (
            reliability(facts.delivered, facts.failed),
            f"{facts.delivered} delivered, {facts.failed} failed",
        ),
        "cached": (
            facts.cached_bytes / facts.data_bytes if facts.data_bytes else 1.0,
            f"{sized(facts.cached_bytes)} of {sized(facts.data_bytes)}",
        ),
        "load": ((1 - facts.cpu) * 0.5**facts.held, f"CPU {facts.cpu:.0%}, {facts.held} assignments held"),
    }
    if facts.has_environment is not None:
        told = "has it" if facts.has_environment else "would have to install it"
        values["environment"] = (float(facts.has_environment), told)
    return tuple(
        ScoreTerm(name=name, value=value, weight=WEIGHTS[name], contribution=value * WEIGHTS[name], detail=detail)
        for name, (value, detail) in values.items()
    )


def total(terms: Sequence[ScoreTerm]) -> float:
    """Add up the contributions."""
    return sum(t.contribution for t in terms)


def expected_speeds(run: TaskRun, clients: Sequence[ClientState]) -> dict[str, float]:
    """Return each client's samples per second for the task, by client id, each over 0.

    Measured where it was; else the measured clients' mean, scaled by the machines' benchmark where both have one;
    1.0 for all while nothing is measured and nobody has a benchmark.
    """
    measured = {c.client_id: v for c in clients if (v := _measured(c, run)) is not None}
    if len(measured) == len(clients):
        return measured
    known = [c for c in clients if c.client_id in measured]
    mean_speed = sum(measured.values()) / len(measured) if measured else 1.0
    rated = [gflops for c in (known or clients) if (gflops := _gflops(c))]
    mean_gflops = sum(rated) / len(rated) if rated else 0.0
    expected = {}
    for client in clients:
        gflops = _gflops(client) if mean_gflops else 0.0
        expected[client.client_id] = mean_speed * gflops / mean_gflops if gflops else mean_speed
    return expected | measured


def _gflops(client: ClientState) -> float:
    """Return what the machine says that it can do; 0 for what no machine can."""
    gflops = client.record.resources.bench_gflops
    return gflops if _LEAST_GFLOPS <= gflops <= _MOST_GFLOPS else 0.0


def _measured(client: ClientState, run: TaskRun) -> float | None:
    average = client.speeds.get(run.task_id)
    return average.value if average and average.value else None


def rank(run: TaskRun, clients: Sequence[ClientState]) -> list[tuple[float, ClientState, tuple[ScoreTerm, ...]]]:
    """Score the clients for the task and return (score, client, terms), best first; ties by client id."""
    speeds = expected_speeds(run, clients)
    fastest = max(speeds.values(), default=0.0)
    sizes = {s.blob.digest: s.blob.size_bytes for s in run.record.spec.dataset.shards if s.blob}
    data, scored = _Data(sizes, sum(sizes.values())), []
    for client in clients:
        terms = score(_facts(run, client, speeds[client.client_id], fastest, data))
        scored.append((total(terms), client, terms))
    return sorted(scored, key=lambda x: (-x[0], x[1].client_id))


def best(run: TaskRun, clients: Sequence[ClientState], count: int) -> list[ClientState]:
    """Choose clients for a task: those that worked on it last, and may have warm executors, then by score.

    Where there are very many, only the fastest of them are scored.
    """

    def quick(client: ClientState) -> tuple[bool, float, float, int]:
        return run.task_id in client.recent, _measured(client, run) or 0.0, _gflops(client), -client.place

    shortlist = clients if len(clients) <= _SHORTLIST else nlargest(max(_SHORTLIST, count), clients, key=quick)
    ranked = [client for _, client, _ in rank(run, shortlist)]
    warm = [client for client in ranked if run.task_id in client.recent]
    cold = [client for client in ranked if run.task_id not in client.recent]
    return (warm + cold)[:count]


@dataclass(frozen=True, slots=True)
class _Data:
    """A task's data set: the sizes of its blobs by digest, and in all."""

    sizes: Mapping[str, int]
    size_bytes: int

    def held_by(self, client: ClientState) -> int:
        """Count the bytes that a client has."""
        return sum(self.sizes[digest] for digest in client.cached & self.sizes.keys()) if client.cached else 0


def _facts(run: TaskRun, client: ClientState, speed: float, best_speed: float, data: _Data) -> Facts:
    lock = run.record.spec.environment
    return Facts(
        speed=speed,
        measured=_measured(client, run) is not None,
        best_speed=best_speed,
        free_bytes=min(client.load.ram_free_bytes or client.record.resources.ram_bytes, _MOST_BYTES),
        needed_bytes=run.brief.needed_ram_bytes,
        delivered=client.record.delivered,
        failed=client.record.failed,
        cached_bytes=data.held_by(client),
        data_bytes=data.size_bytes,
        cpu=client.load.cpu if 0 <= client.load.cpu <= 1 else 1.0,
        held=len(client.held),
        has_environment=None if lock is None else lock.digest in client.environments.built,
    )
