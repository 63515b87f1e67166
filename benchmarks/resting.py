"""What a farm without work costs its machines: memory and CPU of a real server, agent and executor that wait."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.farm import wait_until
from benchmarks.measurement import Measurement
from farm_client.cli.localfarm import local_farm
from farm_client.sandbox.watch import resident_bytes, tree

WARM_UP_SECONDS: Final = 120.0
REST_SECONDS: Final = 10.0
"""After its start a process still tidies up."""


@dataclass(frozen=True)
class Resting(Measurement):
    """One process that waits for work, with all that it is made of: ``executor`` is the spare one, in its sandbox.

    ``cpu_share`` is CPU seconds in a second: of one core.
    """

    process: str
    rss_bytes: int
    cpu_share: float
    seconds: float


def measure(seconds: float, rest_seconds: float = REST_SECONDS) -> Iterator[Resting]:
    """Measure a farm with one client over so many seconds. Raises: BenchmarkError, DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="aifarm-resting-") as name, local_farm(Path(name), 1) as farm:
        agent = farm.volunteers[0].pid
        wait_until(lambda: _is_warm(agent), WARM_UP_SECONDS, lambda: "no executor was warm")
        time.sleep(rest_seconds)
        parts = {
            "server": [farm.server.pid],
            "agent": [agent],
            "executor": [pid for pid in tree(agent) if pid != agent],
        }
        before = {pid: _cpu_seconds(pid) for pids in parts.values() for pid in pids}
        began = time.perf_counter()
        time.sleep(seconds)
        lasted = time.perf_counter() - began
        for process, pids in parts.items():
            left = [pid for pid in pids if psutil.pid_exists(pid)]  # a trial of the sandbox may have ended since
            spent = sum(_cpu_seconds(pid) - before[pid] for pid in left)
            yield Resting("idle", process, sum(map(_rss_bytes, left)), spent / lasted, lasted)


def _is_warm(agent: int) -> bool:
    """Whether the agent's spare executor has imported torch."""
    return resident_bytes(agent) - _rss_bytes(agent) > 200 * 1024**2


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _rss_bytes(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss
