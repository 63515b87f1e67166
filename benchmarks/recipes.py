"""Every named recipe on one small task: what it reaches, by samples and by bytes, beside one process.

A real farm of eight clients trains the digits example by each recipe, for as many samples as the plain side, which is a
loop over the same rows from the same weights. What is compared are recipes as they come: nothing is tuned for the task
but the size of a round. One training is as far from the next as two points of accuracy, by its initial weights and its
order alone, so each recipe is trained from several seeds, and so is the plain side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from types import MappingProxyType, ModuleType
from typing import Any, Final

import torch

from benchmarks.evaluations import evaluations
from benchmarks.farm import BenchmarkError, RunningFarm, running_farm
from benchmarks.measurement import Measurement
from benchmarks.meters import server_count
from benchmarks.report import say
from benchmarks.task_module import import_task
from farm_client.data.shards import read_shard
from farm_client.sdk.default_mode import LOOPBACK
from farm_client.sdk.recipe_files import presets, read_recipe
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.task_file import Given, merge_settings
from farm_client.sdk.upload import upload
from protocol.errors import InvalidTask
from protocol.recipe import DataOrder, Mode, PartSizes, Recipe
from protocol.tasks import Split

DIGITS: Final = Path(__file__).parents[1] / "examples" / "digits"
CONFIG: Final[dict[str, Any]] = {"width": 8, "lr": 0.02}
BATCH_SAMPLES: Final = 8
HOLDOUT: Final = 0.2
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"scaffold": {"momentum": 0.0, "lr": 0.1}})
"""Settings of the task that a recipe needs; the plain side has them too. SCAFFOLD is of plain SGD: without momentum of
0.9 steps are as long at ten times the rate, 0.2, at which its corrections of one round's small batches diverge."""


@dataclass(frozen=True)
class Length:
    """How much each recipe trains: samples of a round in weights mode, evaluations in all, and passes over the data."""

    clients: int = 8
    epochs: int = 15
    local_steps: int = 8
    evaluations: int = 10


QUICK: Final = Length(clients=2, epochs=1, evaluations=2)
"""For tests: it shows that all of it works, and nothing else."""


@dataclass(frozen=True)
class Reached:
    """An evaluated version: samples trained on until then, payload bytes both ways by then, held-out loss, accuracy."""

    samples: int
    bytes: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class RecipeRun(Measurement):
    """One recipe on the task from one seed, for as many samples as the plain loop from that seed (``plain_*``).

    ``bytes`` are payload of messages and blobs, both ways, all clients, the first version's download included.
    """

    recipe: str
    seed: int
    mode: str
    clients: int
    samples: int
    rounds: int
    accuracy: float
    plain_accuracy: float
    loss: float
    plain_loss: float
    bytes: int
    curve: list[Reached] = field(default_factory=list)


@dataclass(frozen=True)
class RecipeMean(Measurement):
    """One recipe over all seeds: means, and the worst and the best of the accuracies.

    ``points_below``: percentage points of accuracy by which the mean is below the plain loop's; the aim is at most 1.
    """

    recipe: str
    mode: str
    seeds: int
    rounds: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    plain_accuracy: float
    points_below: float
    loss: float
    plain_loss: float
    bytes: int


def measure(names: Sequence[str], seeds: Sequence[int], length: Length) -> Iterator[RecipeRun]:
    """Train by each of the named recipes from each of the seeds, on one farm.

    Raises: BenchmarkError if a task fails or stalls; DaemonFailed.
    """
    task = import_task(DIGITS / "train.py", "digits_task")
    with tempfile.TemporaryDirectory(prefix="aifarm-recipes-") as name:
        folder = Path(name)
        plain: dict[str, dict[str, float]] = {}
        with running_farm(length.clients, folder / "farm") as farm:
            for recipe, seed in product(names, seeds):
                say(f"{recipe}, seed {seed} …")
                place = folder / f"{recipe}-{seed}"
                place.mkdir()
                prepared = prepare(_submission(recipe, seed, length), place)
                key = f"{seed} {sorted(prepared.spec.config.items())}"
                if key not in plain:
                    plain[key] = _plain(task, prepared, length.epochs)
                yield _trained(farm, recipe, prepared, plain[key])


def means_of(runs: Sequence[RecipeRun]) -> list[RecipeMean]:
    """Return a record for each recipe, in the order of their first runs."""
    return [_mean([run for run in runs if run.recipe == name]) for name in dict.fromkeys(run.recipe for run in runs)]


def _mean(runs: Sequence[RecipeRun]) -> RecipeMean:
    accuracies = [run.accuracy for run in runs]
    accuracy, plain_accuracy = fmean(accuracies), fmean(run.plain_accuracy for run in runs)
    return RecipeMean(
        benchmark="recipes",
        recipe=runs[0].recipe,
        mode=runs[0].mode,
        seeds=len(runs),
        rounds=round(fmean(run.rounds for run in runs)),
        accuracy=accuracy,
        accuracy_low=min(accuracies),
        accuracy_high=max(accuracies),
        plain_accuracy=plain_accuracy,
        points_below=100 * (plain_accuracy - accuracy),
        loss=fmean(run.loss for run in runs),
        plain_loss=fmean(run.plain_loss for run in runs),
        bytes=round(fmean(run.bytes for run in runs)),
    )


def known_recipes() -> list[str]:
    """Return the names of the recipes that the task can be trained by.

    Its rows have no order.
    """
    return [preset.name for preset in presets() if preset.fields.get("order") != DataOrder.SEQUENTIAL]


def recipe_of(name: str, length: Length, seed: int = 0) -> Recipe:
    """Return the recipe as it comes, with an end, for so many clients; in fixed parts where it allows them.

    Raises: InvalidTask if it can't be trained by so many.
    """
    fields = read_recipe(name)
    sized = {
        "batch_samples": BATCH_SAMPLES,
        "min_clients": length.clients,
        "epochs": length.epochs,
        "keep_checkpoints": 1,
        "seed": seed,
    }
    if "mode" in fields:  # else the farm chooses, and the size of a round with it
        steps = 1 if fields["mode"] == Mode.GRADIENTS else length.local_steps
        round_samples = length.clients * BATCH_SAMPLES * steps
        rounds = length.epochs * _rows() * (1 - HOLDOUT) / round_samples
        sized["round_samples"] = round_samples
        sized["evaluate_every"] = max(1, round(rounds / length.evaluations))
    try:
        return _described({**fields, **sized, "parts": PartSizes.FIXED})
    except InvalidTask:  # it counts whoever is first, or what a client did before
        return _described({**fields, **sized})


def _described(fields: dict[str, Any]) -> Recipe:
    return merge_settings(None, Given(recipe=fields)).recipe


def _rows() -> int:
    import numpy as np  # noqa: PLC0415 - one number of a file

    with np.load(DIGITS / "digits.npz") as data:
        return len(data["y"])


def _submission(name: str, seed: int, length: Length) -> Submission:
    return Submission(
        code=DIGITS / "train.py",
        recipe=recipe_of(name, length, seed),
        data=(DIGITS / "digits.npz",),
        config={**CONFIG, **SETTINGS.get(name, {})},
        name=name,
        holdout=HOLDOUT,
        check=False,
        chosen_for=LOOPBACK,  # for the recipe that leaves the mode open
    )


def _trained(farm: RunningFarm, name: str, prepared: Prepared, plain: Mapping[str, float]) -> RecipeRun:
    upload(farm.api, prepared.blobs)
    before = server_count(farm.api.address)
    task_id = farm.api.submit(prepared.spec).task.task_id
    found: dict[int, dict[str, float]] = {}
    for one in evaluations(farm.api, task_id, before):
        values = found.setdefault(one.round, {"bytes": one.count.up_bytes + one.count.down_bytes})
        values[one.name] = one.value
    recipe, train = prepared.spec.recipe, prepared.spec.dataset.samples(Split.TRAIN)
    most = round((recipe.epochs or 0) * train)
    curve = [
        Reached(min(number * recipe.round_samples, most), int(values["bytes"]), values["loss"], values["accuracy"])
        for number, values in sorted(found.items())
    ]
    if not curve:
        raise BenchmarkError(f"{name} was never evaluated")
    last = curve[-1]
    return RecipeRun(
        benchmark="recipes",
        recipe=name,
        seed=recipe.seed,
        mode=recipe.mode,
        clients=recipe.min_clients,
        samples=last.samples,
        rounds=max(found),
        accuracy=last.accuracy,
        plain_accuracy=plain["accuracy"],
        loss=last.loss,
        plain_loss=plain["loss"],
        bytes=last.bytes,
        curve=curve,
    )


def _plain(task: ModuleType, prepared: Prepared, epochs: int) -> dict[str, float]:
    """Return the plain loop's held-out accuracy and loss after as many passes over the same rows.

    It begins with the weights that the farm begins with, which come of the same seed.
    """
    rows, held = (_rows_of(prepared, split) for split in (Split.TRAIN, Split.HOLDOUT))
    config = prepared.spec.config
    torch.set_num_threads(1)  # as the clients compute; and of so small a model threads only wait for each other
    torch.manual_seed(prepared.spec.recipe.seed)
    model = task.build_model(config)
    optimizer = task.build_optimizer(model, config)
    count = len(rows["y"])
    for _ in range(epochs):
        order = torch.randperm(count)
        for start in range(0, count, BATCH_SAMPLES):
            optimizer.zero_grad()
            batch = {name: column[order[start : start + BATCH_SAMPLES]] for name, column in rows.items()}
            task.loss(model, batch)["loss"].backward()
            optimizer.step()
    with torch.no_grad():
        return {name: float(value) for name, value in task.loss(model, held).items()}


def _rows_of(prepared: Prepared, split: Split) -> dict[str, torch.Tensor]:
    """Return a split's rows as the farm's clients have them."""
    blobs = [shard.blob for shard in prepared.spec.dataset.of(split) if shard.blob is not None]
    shards = [read_shard(Path(str(prepared.blobs[blob.digest]))) for blob in blobs]
    parts = [shard.take(torch.arange(shard.samples)) for shard in shards]
    joined: dict[str, torch.Tensor] = shards[0].join(parts)
    return joined
