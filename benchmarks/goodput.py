"""How much of a farm's speed is left when something is killed every 15 seconds."""

from __future__ import annotations

import math
import random
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Final

import psutil

from benchmarks.commits import Commits
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
LOOK_SECONDS: Final = 1.0
WARM_UP_ROUNDS: Final = 3
LONGEST_SECONDS: Final = 120.0
MOST_ROUNDS: Final = 1_000_000


@dataclass(frozen=True)
class Goodput(Measurement):
    """One mode: committed samples per second without and with kills, and their fraction.

    ``lost_s`` tells for each kind of victim what the 15 s after a kill lacked, in seconds of calm work.
    """

    mode: str
    clients: int
    calm_seconds: float
    calm_samples_per_s: float
    seconds: float
    samples_per_s: float
    kills: dict[str, int]
    lost_s: dict[str, float]
    goodput: float


@dataclass(frozen=True)
class Kill:
    """Who was killed, and when."""

    victim: str
    at: float


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
            watch = Watch(farm, submit_prepared(farm.api, prepared))
            farm.wait_for(lambda: watch.rounds_known() >= WARM_UP_ROUNDS, "warm-up", LONGEST_SECONDS)
            calm_from = time.time()
            watch.until(calm_from + seconds / 2)
            killer = watch.killer = Killer(farm, seed)
            killed_from = time.time()
            watch.until(killed_from + seconds)
            killer.spare_all()
            watch.until(max((kill.at for kill in killer.kills), default=0.0) + KILL_EVERY_SECONDS)
            _check_books(farm, watch.task_id)
    calm_per_s = watch.commits.samples(calm_from, killed_from) / (killed_from - calm_from)
    samples_per_s = watch.commits.samples(killed_from, killed_from + seconds) / seconds
    return Goodput(
        benchmark="goodput",
        mode=mode.value,
        clients=clients,
        calm_seconds=killed_from - calm_from,
        calm_samples_per_s=calm_per_s,
        seconds=seconds,
        samples_per_s=samples_per_s,
        kills={victim: len(kills) for victim, kills in killer.by_victim().items()},
        lost_s=_lost_seconds(killer, watch.commits, calm_per_s),
        goodput=samples_per_s / calm_per_s,
    )


def _lost_seconds(killer: Killer, commits: Commits, calm_per_s: float) -> dict[str, float]:
    """Return the mean of each kind of victim. It may be a little below 0: a calm second is an average too."""
    return {
        victim: fmean(
            KILL_EVERY_SECONDS - commits.samples(kill.at, kill.at + KILL_EVERY_SECONDS) / calm_per_s for kill in kills
        )
        for victim, kills in killer.by_victim().items()
    }


class Watch:
    """Looks at a task once a second, and gives the killer its chances meanwhile."""

    def __init__(self, farm: MortalFarm, task_id: str) -> None:
        self.task_id = task_id
        self.commits = Commits()
        self.killer: Killer | None = None
        self._farm = farm

    def rounds_known(self) -> int:
        """Look at the newest rounds, and return how many are known. Raises: BenchmarkError if the task ended."""
        detail = self._farm.api.task(self.task_id)
        if is_over(detail.task):
            raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
        self.commits.note(detail.rounds)
        return len(self.commits)

    def until(self, moment: float) -> None:
        """Watch until a commit after that moment (on the wall clock, which is the server's too) is known.

        Raises: BenchmarkError if there is none for two minutes.
        """
        look_at = 0.0
        while self.commits.newest <= moment:
            if time.time() > moment + LONGEST_SECONDS:
                raise BenchmarkError(f"no round was committed for {LONGEST_SECONDS:g} s")
            if self.killer is not None:
                self.killer.do_what_is_due()
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_SECONDS
                self._farm.ask(self.rounds_known)
            time.sleep(POLL_SECONDS)


@dataclass
class Killer:
    """Kills something every 15 s and starts again what ended, whenever it is given the chance.

    In the thread that started the farm: a child process ends with the thread that started it.
    """

    farm: MortalFarm
    seed: int
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._victims = cycle(VICTIMS)
        self._revive_at = 0.0
        # The first one half an interval in, so that a window of N intervals holds N kills.
        self._kill_at = time.monotonic() + KILL_EVERY_SECONDS / 2

    def do_what_is_due(self) -> None:
        """Kill or revive, if it is time to."""
        if time.monotonic() >= self._revive_at:
            self._revive_at = time.monotonic() + REVIVE_SECONDS
            self.farm.revive()
        if time.monotonic() >= self._kill_at:
            self._kill_at += KILL_EVERY_SECONDS
            self._kill(next(self._victims))
            self._revive_at = time.monotonic() + REVIVE_SECONDS

    def spare_all(self) -> None:
        """Kill nobody any more."""
        self._kill_at = math.inf

    def by_victim(self) -> dict[str, list[Kill]]:
        """Return the kills by kind of victim."""
        return {victim: kills for victim in VICTIMS if (kills := [k for k in self.kills if k.victim == victim])}

    def _kill(self, victim: str) -> None:
        self.kills.append(Kill(victim, time.time()))
        name = self._chance.choice(sorted(self.farm.clients))
        if victim == "server":
            self.farm.kill(self.farm.server)
        elif victim == "client":
            self.farm.kill(self.farm.clients[name])
        else:
            for executor in self.farm.busy_executors_of(name):
                with suppress(psutil.NoSuchProcess):
                    executor.kill()


def _check_books(farm: MortalFarm, task_id: str) -> None:
    """Speed by counting twice would be none. Raises: BenchmarkError if the books are wrong."""
    farm.revive()
    farm.wait_for(lambda: farm.api.act(task_id, "cancel").state == "cancelled", "the task is cancelled")
    books, samples = farm.api.shards(task_id), farm.api.task(task_id).task.samples_done
    if wrong := unbalanced(books, samples):
        raise BenchmarkError(f"the books do not balance: {'; '.join(wrong)}")
