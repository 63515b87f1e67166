"""Differential privacy of what clients contribute (DP-FedAvg): what a recipe may say of it, and what contradicts it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocol.aggregates import AggregateName

if TYPE_CHECKING:
    from protocol.recipe import Recipe

DELTA: Final = 1e-5
"""The usual chance of more loss than epsilon. It should be well under one over the number of clients."""
PRIVACY_FIELDS: Final = ("dp_clip", "dp_noise_multiplier", "dp_delta")
"""What the loss of a round follows from: a task that goes on with another one's rounds must have the same."""


def is_private(recipe: Recipe) -> bool:
    """Whether what clients contribute is clipped and gets noise."""
    return recipe.dp_clip is not None


def unfit_for_privacy(recipe: Recipe) -> str | None:
    """Return which of the recipe's fields differential privacy lacks or can't use, in a sentence."""
    if is_private(recipe) != (recipe.dp_noise_multiplier > 0):
        return "dp_clip, such as 1.0, and dp_noise_multiplier, such as 1.1, need each other: one alone is no privacy"
    if not is_private(recipe):
        return "dp_epsilon needs a dp_clip and a dp_noise_multiplier" if recipe.dp_epsilon is not None else None
    if recipe.aggregate is not AggregateName.MEAN:
        return f'the noise of dp_clip is that of a mean: leave out aggregate = "{recipe.aggregate}", or dp_clip'
    if recipe.max_staleness:
        return "with dp_clip a client counts once in a round, and a late update is one more: leave out max_staleness"
    if recipe.inner_state == "carried":
        return 'inner_state = "carried" hands clients\' states on without noise: use "kept" or "fresh" with dp_clip'
    return None
