"""The cells of the quality benchmark, many at a time and over several calls: what a file has is not measured again.

Only losses count and no times, so that trainings may share a machine. A farm serves one training after the other.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from itertools import count, product
from pathlib import Path
from typing import Final

from benchmarks.farm import BenchmarkError, RunningFarm, running_farm
from benchmarks.measurement import Measurement
from benchmarks.quality import PlainLosses, Quality, Run, lay_out, measure, plain_losses
from benchmarks.report import say
from protocol.errors import FarmError

CLIENT_SETTINGS: Final = {"OMP_NUM_THREADS": "1"}
Subject = tuple[str, int]
"""A model and a seed: they have one plain loop."""


@dataclass(frozen=True)
class QualitySummary(Measurement):
    """All seeds of a model in a mode on so many clients: the geometric mean of their ratios, and the worst."""

    model: str
    mode: str
    clients: int
    seeds: int
    mean_ratio: float
    worst_ratio: float


def runs_of(
    models: Iterable[str], modes: Iterable[str], clients: Iterable[int], seeds: Iterable[int], epochs: int
) -> list[Run]:
    """Return all cells; those of a number of clients follow each other, within them the models as they were named."""
    grid = product(clients, models, seeds, modes)
    return [Run(model, mode, number, seed, epochs) for number, model, seed, mode in grid]


def measured_in(path: Path) -> list[Quality]:
    """Return what a file has of earlier calls; a line that was cut by the end of its writer counts for nothing."""
    names = {field.name for field in fields(Quality)}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record.get("benchmark") == "quality":
            found.append(Quality(**{name: value for name, value in record.items() if name in names}))
    return found


def key_of(cell: Run | Quality) -> tuple[str, str, int, int]:
    """Return what tells a cell of the table from all others."""
    return cell.model, cell.mode, cell.clients, cell.seed


def summaries(found: Iterable[Quality]) -> list[QualitySummary]:
    """Sum up what was measured, by model, mode and number of clients."""
    ratios: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for cell in found:
        ratios[cell.model, cell.mode, cell.clients].append(cell.ratio)
    return [
        QualitySummary("quality summary", *key, len(values), math.exp(_mean_log(values)), max(values))
        for key, values in sorted(ratios.items())
    ]


def sweep(runs: Iterable[Run], known: Iterable[Quality], jobs: int) -> Iterator[Quality]:
    """Measure every run that is not known, ``jobs`` at a time, and yield each as soon as it is there.

    Raises: BenchmarkError at the end if some could not be measured; each is told of on stderr when it happens.
    """
    known = list(known)
    done = {key_of(cell) for cell in known}
    left = [run for run in runs if key_of(run) not in done]
    plain = _plain_of(left, known, jobs)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="quality-") as name:
        farms = _Farms(Path(name), plain)
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="farm")
        asked = [pool.submit(farms.measure, run) for run in left]
        try:
            for future in as_completed(asked):
                try:
                    yield future.result()
                except (BenchmarkError, FarmError) as error:
                    say(f"error: {error}")
                    failed += 1
        finally:
            for future in asked:
                future.cancel()  # whoever stops reading wants no more of it
            farms.stop()  # before the threads that started them: to the kernel those are the parents
            pool.shutdown()
    if failed:
        raise BenchmarkError(f"{failed} of {len(left)} trainings could not be measured; what was said is above")


def _plain_of(runs: Iterable[Run], known: Iterable[Quality], jobs: int) -> dict[Subject, PlainLosses]:
    """Return the plain losses of all runs; those that stand beside a known farm's loss are taken from there."""
    losses = {(c.model, c.seed): PlainLosses(c.plain_loss, c.plain_low, c.plain_high) for c in known}
    missing = {(run.model, run.seed): run.epochs for run in runs if (run.model, run.seed) not in losses}
    if not missing:
        return losses
    # Not threads: the loops take their random numbers from torch's one generator. Not forks: torch has threads.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        asked = {subject: pool.submit(plain_losses, *subject, epochs) for subject, epochs in missing.items()}
        return losses | {subject: future.result() for subject, future in asked.items()}


class _Farms:
    """The farms that run, each at one training at a time. To be called from threads."""

    def __init__(self, folder: Path, plain: Mapping[Subject, PlainLosses]) -> None:
        self._folder = folder
        self._plain = plain
        self._task = lay_out(folder / "task")
        self._names = map(str, count(1))
        self._idle: list[_Farm] = []
        self._started: list[_Farm] = []

    def stop(self) -> None:
        """End all farms; what is being trained on one of them fails."""
        for farm in self._started:
            farm.stop()

    def measure(self, run: Run) -> Quality:
        """Train on an idle farm of the run's number of clients, or a new one, and compare."""
        farm = self._taken(run.clients)
        try:
            found = measure(farm.running, self._task, run, self._plain[run.model, run.seed], farm.folder)
        except BaseException:
            farm.stop()
            raise
        self._idle.append(farm)
        return found

    def _taken(self, clients: int) -> _Farm:
        """Return a farm that is nobody else's until it is put back: another one is stopped if this one must start."""
        idle = self._idle.pop() if self._idle else None
        if idle is not None and idle.clients == clients:
            return idle
        if idle is not None:
            idle.stop()
        farm = _Farm(clients, self._folder / f"farm-{next(self._names)}")
        self._started.append(farm)
        return farm


class _Farm:
    """One farm that runs until it is stopped."""

    def __init__(self, clients: int, folder: Path) -> None:
        self.clients = clients
        self.folder = folder
        self._open = ExitStack()
        self.running: RunningFarm = self._open.enter_context(running_farm(clients, folder, CLIENT_SETTINGS))

    def stop(self) -> None:
        """End it. What it says at its end is of no interest: its trainings are over, or failed."""
        with suppress(FarmError):
            self._open.close()


def _mean_log(values: list[float]) -> float:
    return math.fsum(map(math.log, values)) / len(values)
