"""How long a recipe trains, in rounds and in global steps: numbers that are known before it starts."""

from __future__ import annotations

import math
from typing import Final, Protocol

from protocol.bounds import Count, Positive
from protocol.frozen import Frozen
from protocol.recipe import Mode, Recipe

FOR_EVER: Final = 2**53
"""As many samples, or rounds, as a task without an end that anybody will see."""


class Sizes(Protocol):
    """What decides how an epoch is cut into rounds: a recipe, or what a trial knows of it."""

    @property
    def round_samples(self) -> int:
        """Samples of a round."""

    @property
    def batch_samples(self) -> int:
        """Samples of a local step."""


class Course(Sizes, Protocol):
    """What decides how long a task trains: the earlier of two ends; one pass where there is neither."""

    @property
    def rounds(self) -> int | None:
        """Rounds after which it ends."""

    @property
    def epochs(self) -> float | None:
        """Passes over the training rows after which it ends."""


class TaskLength(Frozen):
    """How long a task trains if every round commits in full and nothing stops it before."""

    steps: Count
    """Global steps: rounds in gradients mode; in weights mode batches of all that is trained on, rounded up."""
    steps_per_epoch: Positive
    """Those of one pass, its short last one included."""
    epochs: Count
    """Passes, a begun one included."""

    @property
    def is_endless(self) -> bool:
        """Return whether nobody will see its end."""
        return self.steps >= FOR_EVER


def smallest_part(sizes: Sizes) -> int:
    """Return the fewest samples of a part: two, for BatchNorm cannot train on one, unless the recipe sets one."""
    return min(2, sizes.batch_samples, sizes.round_samples)


def rounds_per_epoch(sizes: Sizes, train_samples: int) -> int:
    """Return how many rounds an epoch has: its last one is short, or takes a stray sample along."""
    full, stray = divmod(train_samples, sizes.round_samples)
    return max(full + (stray >= smallest_part(sizes)), 1)


def rounds_of_epochs(sizes: Sizes, epochs: float, train_samples: int) -> int:
    """Return how many rounds so many epochs have; a part of an epoch is cut as the beginning of one."""
    samples = samples_of_epochs(epochs, train_samples)
    if samples >= FOR_EVER:
        return FOR_EVER
    whole, rest = divmod(samples, max(train_samples, 1))
    return max(whole * rounds_per_epoch(sizes, train_samples) - (-rest // sizes.round_samples), 1)


def samples_of_epochs(epochs: float, train_samples: int) -> int:
    """Return how many samples so many epochs are; for any number, however large."""
    product = epochs * train_samples
    return int(product) if math.isfinite(product) and product < FOR_EVER else FOR_EVER


def global_steps(recipe: Recipe, train_samples: int) -> int:
    """Return how many steps the task's schedules have: ``TaskLength.steps``."""
    return task_length(recipe, recipe.mode, train_samples).steps


def task_length(course: Course, mode: Mode, train_samples: int) -> TaskLength:
    """Return how long a task is, with so many rows to train on."""
    if mode is Mode.GRADIENTS:
        rounds, per_epoch = _rounds(course, train_samples), rounds_per_epoch(course, train_samples)
        return TaskLength(steps=rounds, steps_per_epoch=per_epoch, epochs=-(-rounds // per_epoch))
    samples, rows = _samples(course, train_samples), max(train_samples, 1)
    steps = FOR_EVER if samples >= FOR_EVER else max(1, -(-samples // course.batch_samples))
    per_epoch = -(-rows // course.batch_samples)
    return TaskLength(steps=steps, steps_per_epoch=per_epoch, epochs=max(1, -(-samples // rows)))


def _rounds(course: Course, train_samples: int) -> int:
    limits = [] if course.rounds is None else [course.rounds]
    if course.epochs is not None or not limits:
        limits.append(rounds_of_epochs(course, 1.0 if course.epochs is None else course.epochs, train_samples))
    return min(limits)


def _samples(course: Course, train_samples: int) -> int:
    limits = [FOR_EVER]
    if course.epochs is not None or course.rounds is None:
        limits.append(samples_of_epochs(1.0 if course.epochs is None else course.epochs, train_samples))
    if course.rounds is not None:
        passes, rest = divmod(course.rounds, rounds_per_epoch(course, train_samples))
        limits.append(passes * train_samples + rest * course.round_samples)
    return min(limits)
