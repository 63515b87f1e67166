"""What a crowd of clients without work costs a task that trains beside them: its rounds/s with them and without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
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
    """Rounds/s of three clients alone and beside the crowd, in turns; the windows alone are one more.

    ``share`` is the median of ``shares``, each of which is that of a window beside the crowd over the mean of the two
    windows alone before and after it. CPU is in cores: seconds of it in a second. The crowd's process, and whatever
    else ran, had the cores that the farm uses: where ``busy_cores_beside`` is all of ``cores``, what the crowd's own
    process took was the trainers' too.
    """

    clients: int
    seconds: float
    alone_rounds_per_s: list[float]
    beside_rounds_per_s: list[float]
    shares: list[float]
    share: float
    idle_heartbeat_seconds: float
    """As often the crowd beats."""
    server_rss_bytes_per_client: float
    """From the first window alone to the first one beside the crowd."""
    server_cpu_alone: float
    server_cpu_beside: float
    crowd_cpu_beside: float
    cores: int
    busy_cores_alone: float
    busy_cores_beside: float
    """Of the whole machine."""
    loop_lag_p99_alone_ms: float
    loop_lag_p99_beside_ms: float


@dataclass(frozen=True)
class Window:
    """What was seen in one window. CPU is in cores."""

    rounds_per_s: float
    server_cpu: float
    crowd_cpu: float
    busy_cores: float
    lag: LoopLag
    server_rss_bytes: int


@contextmanager
def training_farm(clients: int, folder: Path) -> Iterator[Scene]:
    """Run a farm with room for a crowd of so many, on which three clients train by themselves."""
    prepared = prepare_regression(TASK, folder / "task")
    environ = {"FARM_SERVER_MAX_CLIENTS": str(clients + TRAINERS)}
    with mortal_farm(folder / "farm", TRAINERS, environ) as farm:
        named = Requirements(clients=tuple(farm.clients))
        scene = Scene(farm, submit_prepared(farm.api, prepared, requirements=named))
        scene.warm_up()
        yield scene
        farm.api.act(scene.task_id, "cancel")


def measure(clients: int, seconds: float, repeats: int) -> Idle:
    """Measure a window without the crowd, then ``repeats`` times one with it and one without.

    Raises: BenchmarkError, DaemonFailed.
    """
    beside: list[Window] = []
    idle_heartbeat_seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="aifarm-idle-") as name, training_farm(clients, Path(name)) as scene:
        alone = [scene.window(seconds)]
        for _ in range(repeats):
            with scene.crowd(clients, Path(name)) as crowd:
                _, idle_heartbeat_seconds = scene.settled(clients)
                beside.append(scene.window(seconds, crowd))
            scene.settled(0)
            alone.append(scene.window(seconds))
    return _found(clients, seconds, idle_heartbeat_seconds, alone, beside)


def _found(
    clients: int, seconds: float, idle_heartbeat_seconds: float, alone: Sequence[Window], beside: Sequence[Window]
) -> Idle:
    shares = shares_of([w.rounds_per_s for w in alone], [w.rounds_per_s for w in beside])
    return Idle(
        benchmark="idle",
        clients=clients,
        seconds=seconds,
        alone_rounds_per_s=[window.rounds_per_s for window in alone],
        beside_rounds_per_s=[window.rounds_per_s for window in beside],
        shares=shares,
        share=median(shares),
        idle_heartbeat_seconds=idle_heartbeat_seconds,
        server_rss_bytes_per_client=(beside[0].server_rss_bytes - alone[0].server_rss_bytes) / clients,
        server_cpu_alone=fmean(window.server_cpu for window in alone),
        server_cpu_beside=fmean(window.server_cpu for window in beside),
        crowd_cpu_beside=fmean(window.crowd_cpu for window in beside),
        cores=psutil.cpu_count() or 1,
        busy_cores_alone=fmean(window.busy_cores for window in alone),
        busy_cores_beside=fmean(window.busy_cores for window in beside),
        loop_lag_p99_alone_ms=_p99_ms(alone),
        loop_lag_p99_beside_ms=_p99_ms(beside),
    )


def shares_of(alone: Sequence[float], beside: Sequence[float]) -> list[float]:
    """Return each rate beside the crowd over the mean of the rates alone just before and just after it."""
    return [rate / fmean(alone[n : n + 2]) for n, rate in enumerate(beside)]


def _p99_ms(windows: Sequence[Window]) -> float:
    lag = windows[0].lag
    for window in windows[1:]:
        lag = lag + window.lag
    return 1000 * lag.quantile(0.99)


class Scene:
    """The farm with its task."""

    def __init__(self, farm: MortalFarm, task_id: str) -> None:
        self._farm = farm
        self.task_id = task_id

    @contextmanager
    def crowd(self, clients: int, folder: Path, beat_seconds: float | None = None) -> Iterator[Crowd]:
        """Have a crowd beside the trainers, all of it from the first moment to the last. Raises: BenchmarkError."""
        with running_crowd(self._farm.join_url, clients, folder, beat_seconds=beat_seconds) as crowd:
            crowd.wait_online(JOIN_SECONDS)
            yield crowd
            crowd.check()
            if crowd.counts.online != clients:
                raise BenchmarkError(f"some of the crowd left during the window: {crowd.counts}")

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
        began, before = time.monotonic(), (_cpu_seconds(server), _cpu_seconds(others), _busy_seconds())
        time.sleep(seconds)
        took = time.monotonic() - began
        after = (_cpu_seconds(server), _cpu_seconds(others), _busy_seconds())
        last, lag = self._newest(), loop_lag(address) - lag
        server_cpu, crowd_cpu, busy_cores = ((b - a) / took for a, b in zip(before, after, strict=True))
        rss_bytes = server.memory_info().rss
        return Window(_rounds_per_s(first, last), server_cpu, crowd_cpu, busy_cores, lag, rss_bytes)

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


def _busy_seconds() -> float:
    """Return what all processes of the machine have used of its cores so far."""
    times = psutil.cpu_times()
    return float(times.user + times.system)
