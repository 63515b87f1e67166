"""How long a recipe trains, in rounds and in global steps: numbers that are known before it starts."""

from __future__ import annotations

import math
from typing import Final, Protocol

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
    """Return how many steps the task's schedules have, if every round commits in full.

    Rounds in gradients mode; in weights mode batches of all that is trained on.
    """
    per_epoch = rounds_per_epoch(recipe, train_samples)
    limits: list[int] = []
    if recipe.mode is Mode.GRADIENTS:
        limits += [] if recipe.epochs is None else [rounds_of_epochs(recipe, recipe.epochs, train_samples)]
        limits += [] if recipe.rounds is None else [recipe.rounds]
        return min(limits)
    if recipe.epochs is not None:
        limits.append(samples_of_epochs(recipe.epochs, train_samples))
    if recipe.rounds is not None:
        passes, rest = divmod(recipe.rounds, per_epoch)
        limits.append(passes * train_samples + rest * recipe.round_samples)
    return max(1, -(-min(limits) // recipe.batch_samples))
