"""How much of a farm's speed is left when something is killed every 15 seconds."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

import psutil

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import POLL_SECONDS, MortalFarm, mortal_farm
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
class Goodput(Measurement):
    """One mode: committed samples per second without and with kills, and their fraction."""

    mode: str
    clients: int
    calm_seconds: float
    calm_samples_per_s: float
    seconds: float
    samples_per_s: float
    kills: dict[str, int]
    goodput: float


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
            calm = _window(farm, task_id, seconds / 2, _nothing)
            killer = Killer(farm, seed)
            disturbed = _window(farm, task_id, seconds, killer)
            _check_books(farm, task_id)
    return Goodput(
        benchmark="goodput",
        mode=mode.value,
        clients=clients,
        calm_seconds=calm.seconds,
        calm_samples_per_s=calm.samples_per_s,
        seconds=disturbed.seconds,
        samples_per_s=disturbed.samples_per_s,
        kills=dict(killer.kills),
        goodput=disturbed.samples_per_s / calm.samples_per_s,
    )


def _nothing() -> None:
    """Nobody is killed."""


def _window(farm: MortalFarm, task_id: str, seconds: float, meanwhile: Callable[[], None]) -> Window:
    """Measure from a commit to the first one after ``seconds``: no half round is counted or forgotten."""
    first, began = _next_commit(farm, task_id, meanwhile)
    while time.monotonic() < began + seconds:
        meanwhile()
        time.sleep(POLL_SECONDS)
    last, ended = _next_commit(farm, task_id, meanwhile)
    return Window(last - first, ended - began)


def _next_commit(farm: MortalFarm, task_id: str, meanwhile: Callable[[], None]) -> tuple[int, float]:
    """Wait for a round to be committed; return the samples done by then, and when it was."""

    def samples_done() -> tuple[int]:
        meanwhile()
        return (_samples_done(farm, task_id),)

    before = farm.wait_for(samples_done, "the server answers", LONGEST_SECONDS)
    farm.wait_for(lambda: samples_done() > before, "a round is committed", LONGEST_SECONDS)
    return farm.wait_for(samples_done, "the server answers", LONGEST_SECONDS)[0], time.monotonic()


def _samples_done(farm: MortalFarm, task_id: str) -> int:
    """Return the committed samples. Raises: BenchmarkError if the task ended."""
    task = farm.api.task(task_id).task
    if is_over(task):
        raise BenchmarkError(f"the task {task.state}: {task.error or task.why}")
    return task.samples_done


class Killer:
    """Kills something every 15 s and starts again what ended, whenever it is given the chance.

    In the thread that started the farm: a child process ends with the thread that started it.
    """

    def __init__(self, farm: MortalFarm, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self._farm = farm
        self._chance = random.Random(seed)
        self._victims = cycle(VICTIMS)
        self._revive_at = 0.0
        # The first one half an interval in, so that a window of N intervals holds N kills.
        self._kill_at = time.monotonic() + KILL_EVERY_SECONDS / 2

    def __call__(self) -> None:
        """Do what is due."""
        if time.monotonic() >= self._revive_at:
            self._revive_at = time.monotonic() + REVIVE_SECONDS
            self._farm.revive()
        if time.monotonic() >= self._kill_at:
            self._kill_at += KILL_EVERY_SECONDS
            self._kill(next(self._victims))
            self._revive_at = time.monotonic() + REVIVE_SECONDS

    def _kill(self, victim: str) -> None:
        self.kills[victim] += 1
        name = self._chance.choice(sorted(self._farm.clients))
        if victim == "server":
            self._farm.kill(self._farm.server)
        elif victim == "client":
            self._farm.kill(self._farm.clients[name])
        else:
            for executor in self._farm.executors_of(name):
                with suppress(psutil.NoSuchProcess):
                    executor.kill()


def _check_books(farm: MortalFarm, task_id: str) -> None:
    """Speed by counting twice would be none. Raises: BenchmarkError if the books are wrong."""
    farm.revive()
    farm.wait_for(lambda: farm.api.act(task_id, "cancel").state == "cancelled", "the task is cancelled")
    books, samples = farm.api.shards(task_id), farm.api.task(task_id).task.samples_done
    if wrong := unbalanced(books, samples):
        raise BenchmarkError(f"the books do not balance: {'; '.join(wrong)}")
