"""Machines of speeds 1, 2, 4 and 8 at one task: how much of what they can do alone, in each way of waiting.

A machine's speed is planted: its batches rest, and arithmetic is nothing beside that, so that four of them fit onto two
cores. Alone each runs the plain loop of the same code, which on a quiet machine does what was planted. All modes have
as many samples in a version, and the same local steps; the loss on held-out digits is that of the newest version after
so many seconds of training.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

import torch
from torch import nn

from benchmarks.farm import BenchmarkError
from benchmarks.measurement import Measurement
from benchmarks.mortal_farm import MortalFarm
from benchmarks.regression import pull_weights, submit_prepared
from farm_client.sdk.outcome import is_over
from farm_client.sdk.submission import Prepared, Submission, prepare
from protocol.recipe import Mode, Recipe

TASK: Final = Path(__file__).parent / "uneven_task" / "train.py"
DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits" / "digits.npz"
SPEEDS: Final = (1.0, 2.0, 4.0, 8.0)
BATCH_SAMPLES: Final = 16
STANDALONE_BATCHES: Final = 12
MOST_ROUNDS: Final = 1_000_000
WARM_UP_VERSIONS: Final = 3
"""Until then speeds are guesses."""
LONGEST_SECONDS: Final = 300.0
MODES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "sync": {},
        "pipeline": {"pipeline": True, "max_staleness": 1},
        "fedbuff": {"buffer": len(SPEEDS), "max_staleness": 16},
        "decoupled": {"quorum_clients": len(SPEEDS) - 1, "max_staleness": 16},
    }
)
"""Recipe fields of each way of waiting."""


@dataclass(frozen=True)
class Pace:
    """How long it takes: a machine of speed 1 does ``unit_samples_per_s``; a round is ``round_seconds`` of all."""

    unit_samples_per_s: float = 40.0
    round_seconds: float = 4.0
    seconds: float = 60.0
    """From when a client first worked on the task to the end of the measurement."""
    epoch_rounds: int = 1000

    @property
    def samples_per_s(self) -> float:
        """The sum of the planted speeds."""
        return self.unit_samples_per_s * sum(SPEEDS)

    @property
    def round_samples(self) -> int:
        """Samples of a version, in whole batches."""
        batches = self.round_seconds * self.samples_per_s / BATCH_SAMPLES
        return max(round(batches), len(SPEEDS)) * BATCH_SAMPLES

    @property
    def config(self) -> dict[str, Any]:
        """The task's settings."""
        return {"samples": self.epoch_rounds * self.round_samples, "unit_samples_per_s": self.unit_samples_per_s}


@dataclass(frozen=True)
class Uneven(Measurement):
    """What one mode gave.

    ``share_of_sum``: samples in committed versions a second, over the sum of the planted speeds, which no machine alone
    can exceed; from the commit after the first rounds, of which speeds are learned, to the last one.
    ``standalone_samples_per_s``: the sum of what the plain loop did at each of these speeds, one at a time. ``loss``:
    on held-out digits, of the newest version ``seconds`` after a client first worked on it, first rounds included.
    """

    mode: str
    share_of_sum: float
    samples_per_s: float
    standalone_samples_per_s: float
    versions: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class Commit:
    """When a version was committed, and of how many samples it is."""

    at: float
    samples: int


def measure(modes: Iterable[str], pace: Pace) -> Iterator[Uneven]:
    """Train in one mode after the other, each on a farm of its own. Raises: BenchmarkError, DaemonFailed."""
    with tempfile.TemporaryDirectory(prefix="aifarm-uneven-") as name:
        folder = Path(name)
        task = lay_out(folder / "task")
        alone = sum(standalone(task, speed, pace) for speed in SPEEDS)
        for mode in modes:
            prepared = _prepare(folder, mode, pace)
            with uneven_farm(folder / mode, task) as farm:
                yield _measured(farm, submit_prepared(farm.api, prepared, name=mode), task, mode, pace, alone, folder)


def lay_out(folder: Path) -> ModuleType:
    """Put the task's code and data into a folder, and import it from there."""
    folder.mkdir(parents=True)
    for file in (TASK, DIGITS):
        shutil.copy(file, folder)
    spec = importlib.util.spec_from_file_location("uneven_task", folder / TASK.name)
    if spec is None or spec.loader is None:
        raise BenchmarkError(f"{TASK} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def standalone(task: ModuleType, speed: float, pace: Pace) -> float:
    """Return the samples per second of the plain loop on a machine of this speed."""
    os.environ[task.SPEED_VARIABLE] = str(speed)
    model: nn.Module = task.build_model(pace.config)
    optimizer, data = task.build_optimizer(model, pace.config), task.make_dataset(pace.config)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_SAMPLES)
    began = time.monotonic()
    for _, batch in zip(range(STANDALONE_BATCHES), loader, strict=False):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    return STANDALONE_BATCHES * BATCH_SAMPLES / (time.monotonic() - began)


@contextmanager
def uneven_farm(folder: Path, task: ModuleType) -> Iterator[MortalFarm]:
    """Run a farm with one client of each speed."""
    folder.mkdir(parents=True)
    farm = MortalFarm(folder)
    try:
        farm.start_server()
        for speed in SPEEDS:
            farm.start_client(f"speed-{speed:.0f}", environ={task.SPEED_VARIABLE: str(speed)})
        farm.wait_online(*(f"speed-{speed:.0f}" for speed in SPEEDS))
        yield farm
        farm.check_ends()
    finally:
        farm.close()


def _prepare(folder: Path, mode: str, pace: Pace) -> Prepared:
    recipe = Recipe(
        mode=Mode.WEIGHTS,
        rounds=MOST_ROUNDS,
        round_samples=pace.round_samples,
        batch_samples=BATCH_SAMPLES,
        min_clients=len(SPEEDS),
        evaluate_every=0,
        keep_checkpoints=1,
        **MODES[mode],
    )
    blobs = folder / f"blobs-{mode}"
    blobs.mkdir()
    return prepare(Submission(code=folder / "task", recipe=recipe, config=pace.config, name=mode, check=False), blobs)


def _measured(
    farm: MortalFarm, task_id: str, task: ModuleType, mode: str, pace: Pace, alone: float, folder: Path
) -> Uneven:
    commits = _watched(farm, task_id, pace.seconds)
    pulled = {name: torch.from_numpy(array) for name, array in pull_weights(farm.api, task_id, folder).items()}
    farm.api.act(task_id, "cancel")
    return measured(mode, pace, alone, commits, held_out_loss(task, pace, pulled))


def _watched(farm: MortalFarm, task_id: str, seconds: float) -> list[Commit]:
    """Return the commits of the first so many seconds of training, in order."""
    found: dict[int, Commit] = {}

    def is_done() -> bool:
        farm.check()
        detail = farm.api.task(task_id)
        if is_over(detail.task):
            raise BenchmarkError(f"the task {detail.task.state}: {detail.task.error or detail.task.why}")
        found.update({r.number: Commit(r.committed_at, r.samples) for r in detail.rounds if r.committed_at is not None})
        return detail.task.started_at is not None and time.time() >= detail.task.started_at + seconds

    farm.wait_for(is_done, "the time is up", LONGEST_SECONDS + seconds)
    return [found[number] for number in sorted(found)]


def held_out_loss(task: ModuleType, pace: Pace, weights: Mapping[str, torch.Tensor]) -> float:
    """Return the mean cross-entropy of a model on the digits that nobody trains."""
    model: nn.Module = task.build_model({**pace.config, "unit_samples_per_s": 1e9})
    model.load_state_dict(dict(weights))
    pixels, labels = task.digits()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(pixels[-task.HELD_OUT :]), labels[-task.HELD_OUT :]))


def measured(mode: str, pace: Pace, alone: float, commits: Sequence[Commit], loss: float) -> Uneven:
    """Return the record of a mode. Raises: BenchmarkError if there were too few commits."""
    counted = commits[WARM_UP_VERSIONS:]
    if not counted:
        raise BenchmarkError(f"{mode} had {len(commits)} versions in {pace.seconds:.0f} s: measure for longer")
    began = commits[WARM_UP_VERSIONS - 1].at
    samples_per_s = sum(commit.samples for commit in counted) / (counted[-1].at - began)
    return Uneven(
        benchmark="uneven",
        mode=mode,
        share_of_sum=samples_per_s / pace.samples_per_s,
        samples_per_s=samples_per_s,
        standalone_samples_per_s=alone,
        versions=len(commits),
        seconds=pace.seconds,
        loss=loss,
    )
