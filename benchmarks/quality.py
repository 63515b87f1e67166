"""The model that a farm trains beside a plain loop's: the held-out losses of both, at equal samples.

The plain side is a loop as a researcher writes it, over torch's DataLoader. Both sides train the code of
``quality_task`` from the same weights, with the same optimizer and batch, for as many epochs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType, ModuleType
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from benchmarks.farm import BenchmarkError, RunningFarm, submit, wait_until
from benchmarks.measurement import Measurement
from benchmarks.order import DIGITS
from benchmarks.regression import pull_weights
from benchmarks.task_module import import_task
from farm_client.sdk.outcome import TaskOutcome, is_over, outcome_of

BATCH_SAMPLES: Final = 32
EPOCHS: Final = 6
PLAIN_ORDERS: Final = 4
"""Plain trainings that make the reference: one alone is as far from the next as 10 or 20 % on data so small."""
TRAIN_SECONDS: Final = 1800.0
"""A training may share its cores with many others."""
TASK: Final = Path(__file__).parent / "quality_task" / "train.py"
MODELS: Final = ("digits", "resnet18", "simplevit", "gpt", "superres", "lstm")
MODES: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "default": (),
        "gradients": ("--mode", "gradients", "--round-samples", str(BATCH_SAMPLES)),
        "weights": ("--mode", "weights"),
    }
)
"""What `farm submit` is told beside the batch and the epochs. ``weights`` is that mode with all else left alone."""


@dataclass(frozen=True)
class Quality(Measurement):
    """``ratio`` is the farm's held-out loss over the plain loop's; ``trained_in`` the mode that the task had.

    ``plain_loss`` is the mean over several orders of the data, from ``plain_low`` to ``plain_high``.
    """

    model: str
    mode: str
    clients: int
    seed: int
    loss: float
    plain_loss: float
    plain_low: float
    plain_high: float
    ratio: float
    trained_in: str


@dataclass(frozen=True)
class PlainLosses:
    """What the plain loop came to: the mean over several orders of the data, the best of them and the worst."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Run:
    """One training on a farm of so many clients: a cell of the table."""

    model: str
    mode: str
    clients: int
    seed: int
    epochs: int = EPOCHS


def lay_out(folder: Path) -> ModuleType:
    """Put the task's code and data into a folder, and import it from there."""
    folder.mkdir(parents=True)
    for file in (TASK, DIGITS):
        shutil.copy(file, folder)
    return import_task(folder / TASK.name, "quality_task")


def arguments_of(run: Run, code: Path) -> list[str]:
    """Return what `farm submit` is told."""
    length = ["--epochs", str(run.epochs), "--batch-samples", str(BATCH_SAMPLES), "--evaluate-every", "0"]
    config = ["--set", f"model={run.model}", "--set", f"seed={run.seed}"]
    return [str(code), *length, "--seed", str(run.seed), *config, *MODES[run.mode]]


def measure(farm: RunningFarm, task: ModuleType, run: Run, plain: PlainLosses, folder: Path) -> Quality:
    """Train on the farm, and compare the model that it gives. Raises: BenchmarkError if the task does not complete."""
    loss, trained_in = farm_loss(farm, task, run, folder)
    return Quality(
        "quality",
        model=run.model,
        mode=run.mode,
        clients=run.clients,
        seed=run.seed,
        loss=loss,
        plain_loss=plain.mean,
        plain_low=plain.low,
        plain_high=plain.high,
        ratio=loss / plain.mean,
        trained_in=trained_in,
    )


def farm_loss(farm: RunningFarm, task: ModuleType, run: Run, folder: Path) -> tuple[float, str]:
    """Train on the farm, and return the held-out loss of the model that it gives, and the mode that the task had."""
    task_id = submit(farm, arguments_of(run, Path(str(task.__file__)).parent))
    wait_until(lambda: is_over(farm.api.task(task_id).task), TRAIN_SECONDS, lambda: f"{run} takes too long")
    ended = farm.api.task(task_id).task
    if outcome_of(ended) is not TaskOutcome.COMPLETED:
        raise BenchmarkError(f"{run} ended {ended.state}: {ended.error}")
    pulled = {name: torch.from_numpy(array) for name, array in pull_weights(farm.api, task_id, folder).items()}
    return held_out_loss(task, run.model, pulled), ended.mode


def plain_losses(model: str, seed: int, epochs: int) -> PlainLosses:
    """Train in a plain loop, in several orders from the same weights; one thread, as the clients compute."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="quality-plain-") as folder:
        task = lay_out(Path(folder) / "task")
        losses = [plain_loss(task, model, seed, epochs, order) for order in range(PLAIN_ORDERS)]
    return PlainLosses(fmean(losses), min(losses), max(losses))


def plain_loss(task: ModuleType, model: str, seed: int, epochs: int, order: int = 0) -> float:
    """Train in a plain loop, and return the held-out loss of the model."""
    config = {"model": model, "seed": seed}
    network = task.build_model(config)
    optimizer = task.build_optimizer(network, config)
    torch.manual_seed(1000 * (order + 1) + seed)
    loader: DataLoader[Any] = DataLoader(task.make_dataset(config), batch_size=BATCH_SAMPLES, shuffle=True)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            task.loss(network, batch).backward()
            optimizer.step()
    return held_out_loss(task, model, network.state_dict())


def held_out_loss(task: ModuleType, model: str, weights: Mapping[str, torch.Tensor]) -> float:
    """Return the mean loss over the rows that neither side trained on."""
    config = {"model": model, "seed": 0}
    network = task.build_model(config)
    network.load_state_dict(weights)
    network.eval()
    with torch.no_grad():
        return float(task.loss(network, task.rows_of(config, held_out=True)))
