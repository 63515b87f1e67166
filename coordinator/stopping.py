"""When a task ends, and when it is evaluated: rounds and epochs in numbers known before it starts."""

from __future__ import annotations

from math import isfinite
from typing import Final

from coordinator.records import TaskRecord
from protocol.recipe import Recipe
from protocol.task_length import rounds_per_epoch
from protocol.tasks import Split, TaskSpec

_FOR_EVER: Final = 2**53
"""As many samples, or rounds, as a task without an end that anybody will see."""


def rounds_total(spec: TaskSpec) -> int:
    """Return how many rounds the recipe takes, if every round commits in full."""
    recipe = spec.recipe
    limits = [_FOR_EVER]
    if recipe.rounds is not None:
        limits.append(recipe.rounds)
    if recipe.epochs is not None:
        limits.append(_rounds_of_epochs(recipe, recipe.epochs, spec.dataset.samples(Split.TRAIN)))
    return min(limits)


def _rounds_of_epochs(recipe: Recipe, epochs: float, samples: int) -> int:
    if samples_of_epochs(epochs, samples) >= _FOR_EVER:
        return _FOR_EVER
    whole = int(epochs)
    rest = -(-int((epochs - whole) * samples) // recipe.round_samples)
    return max(whole * rounds_per_epoch(recipe, samples) + rest, 1)


def samples_of_epochs(epochs: float, samples: int) -> int:
    """Return how many samples so many epochs of ``samples`` are; for any number, however large."""
    product = epochs * samples
    return int(product) if isfinite(product) and product < _FOR_EVER else _FOR_EVER


def evaluation_is_due(task: TaskRecord) -> bool:
    """Whether the task's present version is one that its recipe wants evaluated."""
    every = task.spec.recipe.evaluate_every
    if not every or not task.version or not task.spec.dataset.samples(Split.HOLDOUT):
        return False
    return task.version % every == 0 or is_finished(task)


def is_finished(task: TaskRecord) -> bool:
    """Whether the task has trained all of its recipe, or is to stop before."""
    if task.stopped:
        return True
    recipe = task.spec.recipe
    if recipe.rounds is not None and task.version >= recipe.rounds:
        return True
    if recipe.epochs is None:
        return False
    samples = task.spec.dataset.samples(Split.TRAIN)
    consumed = task.epoch * samples + task.cursor
    return not task.leftover and consumed >= max(samples_of_epochs(recipe.epochs, samples), 1)
