"""What a crowd of clients without work costs a task that trains beside them: its rounds/s with them and without."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import psutil

from benchmarks.crowd import Crowd, running_crowd
from benchmarks.farm import BenchmarkError, wait_until
from benchmarks.measurement import Measurement
from benchmarks.meters import LoopLag, loop_lag
from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared
from benchmarks.report import say
from farm_client.sdk.outcome import is_over
from protocol.recipe import Requirements
from protocol.rest import RoundView

TRAINERS: Final = 3
TASK: Final = Regression(
    rounds=1_000_000,
    round_samples=96,
    batch_samples=32,
    batch_seconds=0.0,
    rounds_per_epoch=64,
    features=64,
    min_clients=TRAINERS,
)
"""One batch for each client in a round that takes as long as the farm takes. It is ended, not finished."""
WARM_UP_ROUNDS: Final = 20
WARM_UP_SECONDS: Final = 120.0
JOIN_SECONDS: Final = 300.0
SETTLED_SECONDS: Final = 5.0
"""The pace that the farm asks for did not change for so long."""
SETTLE_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Idle(Measurement):
    """Rounds/s of three clients alone, beside the crowd, and alone again; ``share`` is of the mean of the two.

    CPU shares are of one core. The crowd's process runs on the cores that the farm uses.
    """

    clients: int
    seconds: float
    alone_rounds_per_s: list[float]
    beside_rounds_per_s: float
    share: float
    idle_heartbeat_seconds: float
    """As often the crowd beats."""
    server_rss_bytes_per_client: float
    server_cpu_alone: float
    server_cpu_beside: float
    crowd_cpu_beside: float
    loop_lag_p99_alone_ms: float
    loop_lag_p99_beside_ms: float


@dataclass(frozen=True)
class Window:
    """What was seen in one window."""

    rounds_per_s: float
    server_cpu: float
    crowd_cpu: float
    lag: LoopLag
    server_rss_bytes: int


def measure(clients: int, seconds: float) -> Idle:
    """Measure a window without the crowd, one with it, and one without it. Raises: BenchmarkError, DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="aifarm-idle-") as name:
        folder = Path(name)
        prepared = prepare_regression(TASK, folder / "task")
        environ = {"FARM_SERVER_MAX_CLIENTS": str(clients + TRAINERS)}
        with mortal_farm(folder / "farm", TRAINERS, environ) as farm:
            named = Requirements(clients=tuple(farm.clients))
            scene = Scene(farm, submit_prepared(farm.api, prepared, requirements=named))
            scene.warm_up()
            before = scene.window(seconds)
            with running_crowd(farm.join_url, clients, folder) as crowd:
                crowd.wait_online(JOIN_SECONDS)
                _, idle_heartbeat_seconds = scene.settled(clients)
                beside = scene.window(seconds, crowd)
                crowd.check()
                if crowd.counts.online != clients:
                    raise BenchmarkError(f"some of the crowd left during the window: {crowd.counts}")
            scene.settled(0)
            after = scene.window(seconds)
            farm.api.act(scene.task_id, "cancel")
    alone = [before.rounds_per_s, after.rounds_per_s]
    return Idle(
        benchmark="idle",
        clients=clients,
        seconds=seconds,
        alone_rounds_per_s=alone,
        beside_rounds_per_s=beside.rounds_per_s,
        share=beside.rounds_per_s / fmean(alone),
        idle_heartbeat_seconds=idle_heartbeat_seconds,
        server_rss_bytes_per_client=(beside.server_rss_bytes - before.server_rss_bytes) / clients,
        server_cpu_alone=fmean([before.server_cpu, after.server_cpu]),
        server_cpu_beside=beside.server_cpu,
        crowd_cpu_beside=beside.crowd_cpu,
        loop_lag_p99_alone_ms=1000 * (before.lag + after.lag).quantile(0.99),
        loop_lag_p99_beside_ms=1000 * beside.lag.quantile(0.99),
    )


class Scene:
    """The farm with its task."""

    def __init__(self, farm: MortalFarm, task_id: str) -> None:
        self._farm = farm
        self.task_id = task_id

    def warm_up(self) -> None:
        """Wait for some rounds. Raises: BenchmarkError."""
        self._farm.wait_for(lambda: self._newest().number >= WARM_UP_ROUNDS, "warm-up", WARM_UP_SECONDS)

    def settled(self, clients: int) -> tuple[float, float]:
        """Wait until so many clients are there besides the trainers, and the farm's pace changes no more.

        Returns the intervals of heartbeats at work and without any, in seconds. Raises: BenchmarkError.
        """
        say(f"{clients} clients beside: settling …")
        since, seen = time.monotonic(), self._presence()

        def has_settled() -> bool:
            nonlocal since, seen
            now, presence = time.monotonic(), self._presence()
            if presence != seen:
                since, seen = now, presence
            return seen[0] == clients + TRAINERS and now - since >= SETTLED_SECONDS

        wait_until(has_settled, SETTLE_SECONDS, lambda: f"the farm did not settle: {seen}")
        return seen[1:]

    def _presence(self) -> tuple[int, float, float]:
        """Return how many clients are online, and the intervals of heartbeats at work and without any."""
        view = self._farm.api.farm()
        assert view.pace is not None
        beat, idle_beat = view.pace.heartbeat_seconds, view.pace.idle_heartbeat_seconds
        return view.clients_online, beat, beat if idle_beat is None else idle_beat

    def window(self, seconds: float, crowd: Crowd | None = None) -> Window:
        """Watch for so long. Raises: BenchmarkError if no round was committed, or the task ended."""
        say(f"measuring for {seconds:g} s …")
        address = self._farm.api.address
        server = psutil.Process(self._farm.server.pid)
        others = psutil.Process(crowd.pid) if crowd is not None else None
        first, lag = self._newest(), loop_lag(address)
        began, server_began, crowd_began = time.monotonic(), _cpu_seconds(server), _cpu_seconds(others)
        time.sleep(seconds)
        took = time.monotonic() - began
        server_cpu, crowd_cpu = _cpu_seconds(server) - server_began, _cpu_seconds(others) - crowd_began
        last, lag = self._newest(), loop_lag(address) - lag
        return Window(_rounds_per_s(first, last), server_cpu / took, crowd_cpu / took, lag, server.memory_info().rss)

    def _newest(self) -> RoundView:
        """Return the newest committed round. Raises: BenchmarkError if the task ended."""
        detail = self._farm.api.task(self.task_id)
        if is_over(detail.task):
            raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
        return max((r for r in detail.rounds if r.committed_at is not None), key=lambda r: r.number, default=_NONE)


_NONE: Final = RoundView(
    number=-1, state="open", epoch=0, samples=0, clients=0, seconds=None, loss=None, committed_at=None
)


def _rounds_per_s(first: RoundView, last: RoundView) -> float:
    """Return the rounds per second from one commit to another, by the server's clock."""
    if first.committed_at is None or last.committed_at is None or last.number <= first.number:
        raise BenchmarkError(f"no round was committed after round {first.number}")
    return (last.number - first.number) / (last.committed_at - first.committed_at)


def _cpu_seconds(process: psutil.Process | None) -> float:
    """Return what all threads of a process have used of the cores so far; 0 without one."""
    if process is None:
        return 0.0
    times = process.cpu_times()
    return float(times.user + times.system)
