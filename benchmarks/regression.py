"""The regression task of the fault measurements: prepared once, submitted often, and judged at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from farm_client.sdk.api import FarmApi
from farm_client.sdk.download import pull_model
from farm_client.sdk.submission import Prepared, Submission, prepare
from farm_client.sdk.upload import upload
from protocol.recipe import Mode, OuterOptimizer, Recipe, Requirements
from protocol.rest import ShardBook

TASK: Final = Path(__file__).parent / "regression_task" / "train.py"
AVERAGING: Final[Mapping[str, Any]] = MappingProxyType({"mode": Mode.WEIGHTS, "outer": OuterOptimizer()})
"""The recipe fields that make a weights-mode task of one that was prepared for gradients."""


@dataclass(frozen=True)
class Regression:
    """How long it is: ``rounds`` of ``round_samples``; each ``batch_samples`` of them take ``batch_seconds``."""

    mode: Mode = Mode.GRADIENTS
    rounds: int = 12
    round_samples: int = 64
    batch_samples: int = 4
    batch_seconds: float = 0.02
    rounds_per_epoch: int = 4
    features: int = 6
    min_clients: int = 1

    @property
    def samples(self) -> int:
        """What all rounds consume."""
        return self.rounds * self.round_samples


def prepare_regression(what: Regression, folder: Path, code: Path = TASK) -> Prepared:
    """Check and describe the task as `farm submit` does; ``folder`` keeps its blobs until they are submitted."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "samples": what.round_samples * what.rounds_per_epoch,
        "features": what.features,
        "batch_seconds": what.batch_seconds,
        "lr": 0.02,
    }
    recipe = Recipe(
        mode=what.mode,
        rounds=what.rounds,
        round_samples=what.round_samples,
        batch_samples=what.batch_samples,
        min_clients=what.min_clients,
        evaluate_every=0,
    )
    return prepare(Submission(code=code, recipe=recipe, config=config), folder)


def submit_prepared(
    api: FarmApi,
    prepared: Prepared,
    name: str = "regression",
    batch_seconds: float | None = None,
    requirements: Requirements | None = None,
    **recipe: Any,
) -> str:
    """Upload what the farm lacks, submit, and return the task's id; a name submitted before is the same task.

    ``batch_seconds`` changes how long it takes and no digit of what it computes; ``recipe`` replaces recipe fields.
    """
    upload(api, prepared.blobs)
    spec = prepared.spec
    config = spec.config if batch_seconds is None else {**spec.config, "batch_seconds": batch_seconds}
    changes = {
        "name": name,
        "submit_token": name,
        "config": config,
        "requirements": requirements or spec.requirements,
        "recipe": spec.recipe.model_copy(update=recipe),
    }
    return api.submit(spec.model_copy(update=changes)).task.task_id


def unbalanced(books: Sequence[ShardBook], samples: int) -> list[str]:
    """Say what is wrong with a task's books: nothing, where each sample was counted exactly once.

    Every epoch but the last is whole, no sample counted twice in it, and in all rounds ``samples`` were counted.
    """
    complaints = [
        f"epoch {b.epoch}, shard {b.shard}: {b.repeated_samples} samples counted again"
        for b in books
        if b.repeated_samples
    ]
    last = max((b.epoch for b in books), default=0)
    complaints += [
        f"epoch {b.epoch}, shard {b.shard}: {b.counted_samples} of {b.samples} samples counted"
        for b in books
        if b.epoch < last and b.counted_samples != b.samples
    ]
    counted = sum(b.counted_samples for b in books)
    if counted != samples:
        complaints.append(f"{counted} samples counted in all instead of {samples}")
    return complaints


def pull_weights(api: FarmApi, task_id: str, folder: Path) -> dict[str, np.ndarray]:
    """Return the task's newest weights by name."""
    path = folder / f"{task_id}.safetensors"
    pull_model(api, api.model(task_id), path)
    return dict(load_file(path))


def relative_difference(weights: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest difference of any tensor, relative to the expected one's Euclidean norm.

    Raises: KeyError if a tensor is missing.
    """
    differences = [np.linalg.norm(weights[name] - tensor) / np.linalg.norm(tensor) for name, tensor in expected.items()]
    return float(np.max(differences))  # unlike max(), never passes over a NaN
