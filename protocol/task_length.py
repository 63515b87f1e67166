"""How long a recipe trains, in rounds and in global steps: numbers that are known before it starts."""

from __future__ import annotations

import math

from protocol.recipe import Mode, Recipe


def smallest_part(recipe: Recipe) -> int:
    """Return the fewest samples of a part: two, for BatchNorm cannot train on one, unless the recipe sets one."""
    return _smallest_part(recipe.round_samples, recipe.batch_samples)


def rounds_per_epoch(recipe: Recipe, train_samples: int) -> int:
    """Return how many rounds an epoch has: its last one is short, or takes a stray sample along."""
    return rounds_of(train_samples, recipe.round_samples, recipe.batch_samples)


def rounds_of(train_samples: int, round_samples: int, batch_samples: int) -> int:
    """Return ``rounds_per_epoch`` of a recipe with these numbers."""
    full, stray = divmod(train_samples, round_samples)
    return max(full + (stray >= _smallest_part(round_samples, batch_samples)), 1)


def _smallest_part(round_samples: int, batch_samples: int) -> int:
    return min(2, batch_samples, round_samples)


def global_steps(recipe: Recipe, train_samples: int) -> int:
    """Return how many steps the task's schedules have, if every round commits in full.

    Rounds in gradients mode; in weights mode batches of all that is trained on.
    """
    per_epoch = rounds_per_epoch(recipe, train_samples)
    limits: list[float] = []
    if recipe.mode is Mode.GRADIENTS:
        limits += [] if recipe.epochs is None else [math.ceil(recipe.epochs * per_epoch)]
        limits += [] if recipe.rounds is None else [recipe.rounds]
        return int(min(limits))
    if recipe.epochs is not None:
        limits.append(recipe.epochs * train_samples)
    if recipe.rounds is not None:
        passes, rest = divmod(recipe.rounds, per_epoch)
        limits.append(passes * train_samples + rest * recipe.round_samples)
    return max(1, math.ceil(min(limits) / recipe.batch_samples))
