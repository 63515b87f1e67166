"""What a client's local steps minimize beside the loss, where a recipe says so: which recipes that fits."""

from __future__ import annotations

from protocol.recipe import InnerState, Mode, PartSizes, Precision, Recipe


def refused_objective(recipe: Recipe) -> str | None:
    """Return why the recipe can't have the local objective that it asks for, in a sentence; None if it can."""
    if recipe.proximal_mu and recipe.mode is Mode.GRADIENTS:
        return "proximal_mu is for weights mode: in gradients mode there are no local steps that could stray"
    why = _refused_beside_scaffold(recipe) if recipe.scaffold_clients else None
    return None if why is None else f"scaffold_clients asks for control variates, {why}"


def _refused_beside_scaffold(recipe: Recipe) -> str | None:
    """Return what control variates do not go with, in a clause: what their equations don't hold for."""
    least = max(recipe.min_clients, recipe.init_min_clients or 1)
    refused = (
        (
            recipe.mode is Mode.GRADIENTS,
            "which are for weights mode: in gradients mode there are no local steps that could stray",
        ),
        (
            recipe.inner_state is not InnerState.CARRIED,
            'the server\'s travels with the version as a carried state does: leave inner_state out, or say "carried"',
        ),
        (recipe.proximal_mu > 0, "and proximal_mu for another cure of the same: leave one of them out"),
        (
            recipe.clip_norm is not None or recipe.clip_value is not None,
            "which are means of whole gradients: leave clip_norm and clip_value out",
        ),
        (
            recipe.precision is Precision.FP16,
            "and with fp16 the gradient of a step may overflow and be left out: use bf16",
        ),
        (
            recipe.quorum < 1 or recipe.over_provision > 0 or recipe.max_staleness > 0,
            "which count each client of a round: leave quorum, over_provision and max_staleness out",
        ),
        (
            recipe.parts is PartSizes.FIXED,
            'and each client keeps one of its own: parts = "fixed" promises equal weights whoever comes',
        ),
        (
            least > recipe.scaffold_clients,
            f"for {recipe.scaffold_clients} clients in all, and a round needs {least}: say how many there are in all",
        ),
    )
    return next((why for is_refused, why in refused if is_refused), None)
