"""How much of a farm's speed is left when something is killed every 15 seconds."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

import psutil

from benchmarks.farm import BenchmarkError
from benchmarks.mortal_farm import MortalFarm, mortal_farm
from benchmarks.regression import Regression, prepare_regression, submit_prepared, unbalanced
from farm_client.sdk.outcome import is_over
from protocol.recipe import Mode

KILL_EVERY_SECONDS: Final = 15.0
VICTIMS: Final = ("client", "executor", "server")
"""Killed in turn."""
REVIVE_SECONDS: Final = 0.2
WARM_UP_ROUNDS: Final = 3
LONGEST_SECONDS: Final = 120.0
MOST_ROUNDS: Final = 1_000_000


@dataclass(frozen=True)
class Goodput:
    """One mode: committed samples per second without and with kills, and their fraction."""

    benchmark: str
    mode: str
    clients: int
    calm_seconds: float
    calm_samples_per_s: float
    seconds: float
    samples_per_s: float
    kills: dict[str, int]
    goodput: float

    def to_json(self) -> str:
        """Return one line of JSON, numbers to four digits."""
        return json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(self).items()})


@dataclass(frozen=True)
class Window:
    """From one committed round to a later one."""

    samples: int
    seconds: float

    @property
    def samples_per_s(self) -> float:
        """The rate."""
        return self.samples / self.seconds


def measure(mode: Mode, clients: int, seconds: float, seed: int = 0) -> Goodput:
    """Measure a window of half of ``seconds`` without and one of ``seconds`` with a kill every 15 s, on one farm.

    Raises: BenchmarkError, DaemonFailed.
    """
    # Half a second of batches for each client in a round: what a volunteer loses when it is killed.
    task = Regression(
        mode=mode,
        rounds=MOST_ROUNDS,
        round_samples=32 * clients,
        batch_samples=4,
        batch_seconds=0.0625,
        rounds_per_epoch=64,
    )
    with tempfile.TemporaryDirectory(prefix="aifarm-goodput-") as name:
        folder = Path(name)
        prepared = prepare_regression(task, folder / "task")
        with mortal_farm(folder / "farm", clients) as farm:
            task_id = submit_prepared(farm.api, prepared)
            farm.wait_for(lambda: _samples_done(farm, task_id) >= WARM_UP_ROUNDS * task.round_samples, "warm-up")
            calm = _window(farm, task_id, seconds / 2)
            with _killing(farm, seed) as kills:
                disturbed = _window(farm, task_id, seconds)
            _check_books(farm, task_id)
    return Goodput(
        benchmark="goodput",
        mode=mode.value,
        clients=clients,
        calm_seconds=calm.seconds,
        calm_samples_per_s=calm.samples_per_s,
        seconds=disturbed.seconds,
        samples_per_s=disturbed.samples_per_s,
        kills=dict(kills),
        goodput=disturbed.samples_per_s / calm.samples_per_s,
    )


def _window(farm: MortalFarm, task_id: str, seconds: float) -> Window:
    """Measure from a commit to the first one after ``seconds``: no half round is counted or forgotten."""
    first, began = _next_commit(farm, task_id)
    time.sleep(seconds)
    last, ended = _next_commit(farm, task_id)
    return Window(last - first, ended - began)


def _next_commit(farm: MortalFarm, task_id: str) -> tuple[int, float]:
    """Wait for a round to be committed; return the samples done by then, and when it was."""
    before = farm.wait_for(lambda: (_samples_done(farm, task_id),), "the server answers", LONGEST_SECONDS)[0]
    farm.wait_for(lambda: _samples_done(farm, task_id) > before, "a round is committed", LONGEST_SECONDS)
    return _samples_done(farm, task_id), time.monotonic()


def _samples_done(farm: MortalFarm, task_id: str) -> int:
    """Return the committed samples. Raises: BenchmarkError if the task ended."""
    task = farm.api.task(task_id).task
    if is_over(task):
        raise BenchmarkError(f"the task {task.state}: {task.error or task.why}")
    return task.samples_done


@contextmanager
def _killing(farm: MortalFarm, seed: int) -> Iterator[Counter[str]]:
    """Kill something every 15 s during the block, and start again what ended; give the number of kills by victim."""
    kills: Counter[str] = Counter()
    over = threading.Event()
    chance = random.Random(seed)

    def kill_for_ever() -> None:
        # The first one half an interval in, so that a window of N intervals holds N kills.
        next_at = time.monotonic() + KILL_EVERY_SECONDS / 2
        victims = cycle(VICTIMS)
        while not over.wait(REVIVE_SECONDS):
            farm.revive()
            if time.monotonic() >= next_at:
                next_at += KILL_EVERY_SECONDS
                kills[_kill(farm, next(victims), chance)] += 1

    killer = threading.Thread(target=kill_for_ever, name="killer")
    killer.start()
    try:
        yield kills
    finally:
        over.set()
        killer.join()


def _kill(farm: MortalFarm, victim: str, chance: random.Random) -> str:
    name = chance.choice(sorted(farm.clients))
    if victim == "server":
        farm.kill(farm.server)
    elif victim == "client":
        farm.kill(farm.clients[name])
    else:
        for executor in farm.executors_of(name):
            with suppress(psutil.NoSuchProcess):
                executor.kill()
    return victim


def _check_books(farm: MortalFarm, task_id: str) -> None:
    """Speed by counting twice would be none. Raises: BenchmarkError if the books are wrong."""
    farm.revive()
    farm.wait_for(lambda: farm.api.act(task_id, "cancel").state == "cancelled", "the task is cancelled")
    books, samples = farm.api.shards(task_id), farm.api.task(task_id).task.samples_done
    if wrong := unbalanced(books, samples):
        raise BenchmarkError(f"the books do not balance: {'; '.join(wrong)}")
