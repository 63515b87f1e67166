"""What it saves to ask clients for fewer heartbeats where many wait: the same crowd, beating as asked and as few would.

The server is the same in both; the crowd of the other window does not heed what it is asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from benchmarks.idle import Window, training_farm
from benchmarks.measurement import Measurement
from protocol.limits import HEARTBEAT_SECONDS


@dataclass(frozen=True)
class Beats(Measurement):
    """Three clients train beside the crowd, whose beats are adaptive and fixed in turns.

    ``gain`` is the median of the ratios of the rounds/s of two neighbouring windows. CPU is in cores.
    """

    clients: int
    seconds: float
    adaptive_seconds: float
    """As often the farm asks clients without work to beat."""
    fixed_seconds: float
    adaptive_rounds_per_s: list[float]
    fixed_rounds_per_s: list[float]
    gain: float
    adaptive_server_cpu: float
    fixed_server_cpu: float
    adaptive_crowd_cpu: float
    fixed_crowd_cpu: float


def measure(clients: int, seconds: float, repeats: int) -> Beats:
    """Measure so many windows of each kind. Raises: BenchmarkError, DaemonFailed."""
    adaptive: list[Window] = []
    fixed: list[Window] = []
    asked = HEARTBEAT_SECONDS
    with tempfile.TemporaryDirectory(prefix="aifarm-beats-") as name, training_farm(clients, Path(name)) as scene:
        for _ in range(repeats):
            for windows, beat_seconds in ((adaptive, None), (fixed, HEARTBEAT_SECONDS)):
                with scene.crowd(clients, Path(name), beat_seconds) as crowd:
                    _, asked = scene.settled(clients)
                    windows.append(scene.window(seconds, crowd))
                scene.settled(0)
    return _found(clients, seconds, asked, adaptive, fixed)


def _found(clients: int, seconds: float, asked: float, adaptive: Sequence[Window], fixed: Sequence[Window]) -> Beats:
    quick, slow = [w.rounds_per_s for w in adaptive], [w.rounds_per_s for w in fixed]
    return Beats(
        benchmark="beats",
        clients=clients,
        seconds=seconds,
        adaptive_seconds=asked,
        fixed_seconds=HEARTBEAT_SECONDS,
        adaptive_rounds_per_s=quick,
        fixed_rounds_per_s=slow,
        gain=median(a / b for a, b in zip(quick, slow, strict=True)),
        adaptive_server_cpu=fmean(w.server_cpu for w in adaptive),
        fixed_server_cpu=fmean(w.server_cpu for w in fixed),
        adaptive_crowd_cpu=fmean(w.crowd_cpu for w in adaptive),
        fixed_crowd_cpu=fmean(w.crowd_cpu for w in fixed),
    )
