"""HeLoCo, an outer optimizer that turns late updates towards its momentum: which recipes it fits."""

from __future__ import annotations

from typing import Final

from protocol.recipe import Mode, Recipe

TURNING: Final = ("c_ok", "k_s", "k_d", "kappa", "beta_max", "eps")
"""Its options that say how an update is turned, when it arrives and no step is made yet."""


def is_heloco(recipe: Recipe) -> bool:
    """Return whether updates are to be turned towards the outer momentum."""
    return recipe.outer.name == "heloco"


def unfit_for_heloco(recipe: Recipe) -> str | None:
    """Return what of a recipe that asks for HeLoCo contradicts it, in a sentence; None if nothing does.

    What has no use for late updates (robust aggregates, privacy, secure sums, fragments) says so itself.
    """
    if not is_heloco(recipe):
        return None
    if recipe.mode is Mode.GRADIENTS:
        return "the outer optimizer heloco is for weights mode: a global batch has one gradient, which is never late"
    if not recipe.max_staleness:
        return (
            "the outer optimizer heloco turns late updates, and in this recipe none is: give buffer, quorum_clients or "
            "max_staleness, or use sgd with momentum"
        )
    scheduled = set(recipe.outer.schedules).union(*(group.schedules for group in recipe.outer.groups))
    if bad := sorted(scheduled & set(TURNING)):
        return f"the outer optimizer heloco turns updates as they come, at no version: give {bad[0]} no schedule"
    return None
