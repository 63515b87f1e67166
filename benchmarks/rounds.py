"""Rounds per second of a task that trains nothing: what the farm adds to each round."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import limit
from benchmarks.farm import POLL_SECONDS, BenchmarkError, RunningFarm, running_farm, submit, wait_until
from benchmarks.measurement import Measurement
from benchmarks.meters import loopback_bytes, peak_rss_bytes
from farm_client.sdk.outcome import is_over
from protocol.rest import RoundView

TASK: Final = Path(__file__).parent / "noop_task" / "train.py"
SAMPLES_PER_CLIENT: Final = 64
"""Enough that every client gets a part of each round, whatever speed was measured of it."""
ROUNDS_PER_EPOCH: Final = 64
MOST_ROUNDS: Final = 1_000_000
"""More than any window sees; the task is cancelled at its end."""
WARM_UP_ROUNDS: Final = 5
WARM_UP_SECONDS: Final = 300.0
FEWEST_ROUNDS: Final = 5
LONGEST_FACTOR: Final = 20.0
"""A window is stretched to so many times its length until it holds ``FEWEST_ROUNDS``."""


@dataclass(frozen=True)
class Case:
    """One measurement: ``seconds`` is the length of its window, after the warm-up."""

    clients: int
    params: int
    mode: str
    seconds: float


@dataclass(frozen=True)
class Measured(Measurement):
    """What one case gave. ``wire_bytes`` is all that crossed the loopback device during the window.

    ``limit_rounds_per_s`` is ``benchmarks.limit`` at the same size, just after; ``ratio`` is the farm's share of it.
    """

    clients: int
    params: int
    mode: str
    rounds: int
    seconds: float
    rounds_per_s: float
    server_peak_rss_bytes: int
    wire_bytes: int
    wire_bytes_per_round: int
    limit_rounds_per_s: float
    ratio: float


@dataclass(frozen=True)
class Window:
    """From one committed round to a later one: how many rounds, seconds and loopback bytes lie between."""

    rounds: int
    seconds: float
    wire_bytes: int


def measure(case: Case) -> Measured:
    """Start a farm, submit the no-op task, measure between two commits, and compare with the limit.

    Raises: BenchmarkError if the farm or the task did not get so far.
    """
    with tempfile.TemporaryDirectory(prefix="aifarm-rounds-") as name:
        folder = Path(name)
        with running_farm(case.clients, folder) as farm:
            task_id = submit(farm, _submission(case))
            window = _observe(farm, task_id, case.seconds)
            peak_bytes = peak_rss_bytes(farm.processes.server.pid)
            farm.api.act(task_id, "cancel")
        limit_rounds_per_s = limit.measure(case.params, case.clients, case.seconds, folder)
    rounds_per_s = window.rounds / window.seconds
    return Measured(
        benchmark="rounds",
        clients=case.clients,
        params=case.params,
        mode=case.mode,
        rounds=window.rounds,
        seconds=window.seconds,
        rounds_per_s=rounds_per_s,
        server_peak_rss_bytes=peak_bytes,
        wire_bytes=window.wire_bytes,
        wire_bytes_per_round=window.wire_bytes // window.rounds,
        limit_rounds_per_s=limit_rounds_per_s,
        ratio=rounds_per_s / limit_rounds_per_s,
    )


def _submission(case: Case) -> list[str]:
    """Return the arguments of `farm submit`: each round is one local step of each client."""
    round_samples = SAMPLES_PER_CLIENT * case.clients
    return [
        str(TASK),
        "--no-check",
        *("--set", f"params={case.params}"),
        *("--set", f"samples={round_samples * ROUNDS_PER_EPOCH}"),
        *("--mode", case.mode),
        *("--rounds", str(MOST_ROUNDS)),
        *("--round-samples", str(round_samples)),
        *("--batch-samples", str(round_samples)),
        *("--min-clients", str(case.clients)),
    ]


def _observe(farm: RunningFarm, task_id: str, seconds: float) -> Window:
    def warm() -> bool:
        return _newest(farm, task_id).number >= WARM_UP_ROUNDS

    wait_until(warm, WARM_UP_SECONDS, lambda: f"no round was committed: {farm.api.why(task_id)}")
    first, first_bytes = _newest(farm, task_id), loopback_bytes()
    began = time.monotonic()
    last = first
    while (elapsed := time.monotonic() - began) < seconds or last.number - first.number < FEWEST_ROUNDS:
        if elapsed > LONGEST_FACTOR * seconds:
            raise BenchmarkError(f"less than {FEWEST_ROUNDS} rounds in {elapsed:.0f} s: {farm.api.why(task_id)}")
        time.sleep(POLL_SECONDS)
        last = _newest(farm, task_id)
    return Window(
        last.number - first.number, _committed_at(last) - _committed_at(first), loopback_bytes() - first_bytes
    )


_NONE: Final = RoundView(
    number=-1, state="open", epoch=0, samples=0, clients=0, seconds=None, loss=None, committed_at=None
)


def _newest(farm: RunningFarm, task_id: str) -> RoundView:
    """Return the newest committed round, or number -1 if there is none.

    Raises: BenchmarkError if the task ended.
    """
    detail = farm.api.task(task_id)
    if is_over(detail.task):
        raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
    return max((r for r in detail.rounds if r.committed_at is not None), key=lambda r: r.number, default=_NONE)


def _committed_at(view: RoundView) -> float:
    assert view.committed_at is not None
    return view.committed_at
