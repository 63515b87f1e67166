"""What a client's local steps minimize beside the loss, where a recipe says so: which recipes that fits."""

from __future__ import annotations

from protocol.recipe import Mode, Recipe


def refused_objective(recipe: Recipe) -> str | None:
    """Return why the recipe can't have the local objective that it asks for, in a sentence; None if it can."""
    if recipe.proximal_mu and recipe.mode is Mode.GRADIENTS:
        return "proximal_mu is for weights mode: in gradients mode there are no local steps that could stray"
    return None
