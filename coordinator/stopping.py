"""When a task ends, and when it is evaluated: rounds and epochs in numbers known before it starts."""

from __future__ import annotations

from coordinator.records import TaskRecord
from protocol.artefacts import MAX_TASK_BYTES, MAX_TASK_FILES
from protocol.task_length import FOR_EVER, rounds_of_epochs, samples_of_epochs
from protocol.tasks import Split, TaskSpec


def rounds_total(spec: TaskSpec) -> int:
    """Return how many rounds the recipe takes, if every round commits in full."""
    recipe = spec.recipe
    limits = [FOR_EVER]
    if recipe.rounds is not None:
        limits.append(recipe.rounds)
    if recipe.epochs is not None:
        limits.append(rounds_of_epochs(recipe, recipe.epochs, spec.dataset.samples(Split.TRAIN)))
    return min(limits)


def evaluation_is_due(task: TaskRecord) -> bool:
    """Whether the task's present version is one that its recipe wants evaluated."""
    every = task.spec.recipe.evaluate_every
    if not every or not task.version or not task.spec.dataset.samples(Split.HOLDOUT):
        return False
    return task.version % every == 0 or is_finished(task)


def epoch_end_is_due(task: TaskRecord) -> bool:
    """Whether the task's present version ends an epoch, and its code has not been shown that yet."""
    is_at_end = not task.cursor and not task.leftover and task.epoch > task.epochs_ended
    return task.spec.epoch_end and is_at_end and has_artefact_room(task)


def has_artefact_room(task: TaskRecord) -> bool:
    """Whether the farm takes more files of the ends of its epochs."""
    return task.artefact_files < MAX_TASK_FILES and task.artefact_bytes < MAX_TASK_BYTES


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
