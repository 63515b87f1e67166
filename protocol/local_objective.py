"""What a client's local steps minimize beside the loss, where a recipe says so: which recipes that fits."""

from __future__ import annotations

from protocol.aggregates import AggregateName
from protocol.fragments import FragmentPattern
from protocol.recipe import InnerState, Mode, PartSizes, Precision, Recipe


def refused_objective(recipe: Recipe) -> str | None:
    """Return why the recipe can't have the local objective that it asks for, in a sentence; None if it can."""
    if recipe.proximal_mu and recipe.mode is Mode.GRADIENTS:
        return "proximal_mu is for weights mode: in gradients mode there are no local steps that could stray"
    if recipe.scaffold_clients and (why := _refused_beside_scaffold(recipe)):
        return f"scaffold_clients asks for control variates, {why}"
    if recipe.fragments > 1 and (why := _refused_beside_fragments(recipe)):
        return f"fragments lets a client go on from its own weights, and {why}"
    if recipe.fragments == 1 and (recipe.fragment_mix or recipe.fragment_pattern is not FragmentPattern.STRIDED):
        return "fragment_mix and fragment_pattern are of fragments: say how many there are, or leave them out"
    return _refused_overlap(recipe)


def _refused_overlap(recipe: Recipe) -> str | None:
    """Return why no fragment can travel beside so many local steps."""
    tau = recipe.fragment_overlap_steps
    if tau and recipe.fragments == 1:
        return "fragment_overlap_steps is of fragments: say how many there are, or leave it out"
    if tau and tau >= (steps := -(-recipe.round_samples // (recipe.batch_samples * recipe.min_clients))):
        return (
            f"a client has about {steps} local steps in a round, and fragment_overlap_steps is {tau}: what it sends "
            "would lack them all; lower it, or raise round_samples"
        )
    return None


def _refused_beside_fragments(recipe: Recipe) -> str | None:
    """Return what does not go with rounds in which one fragment travels, in a clause."""
    refused = (
        (recipe.mode is Mode.GRADIENTS, "gradients mode has no local steps: use weights mode"),
        (
            recipe.inner_state is InnerState.CARRIED,
            'a carried state belongs to the version\'s weights: use inner_state = "kept"',
        ),
        (recipe.proximal_mu > 0 or recipe.scaffold_clients > 0, "proximal_mu and scaffold_clients to the version's"),
        (recipe.dp_clip is not None, "dp_clip bounds what a client contributes with a whole update"),
        (recipe.aggregate is not AggregateName.MEAN, f'aggregate = "{recipe.aggregate}" needs whole updates'),
        (recipe.max_staleness > 0, "a late update has another fragment than the round that would count it"),
        (recipe.parts is PartSizes.FIXED, 'parts = "fixed" promises weights that depend on no client\'s past'),
    )
    return next((why for is_refused, why in refused if is_refused), None)


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
            recipe.parts is PartSizes.FIXED and recipe.split is None,
            'and each client keeps one of its own: parts = "fixed" promises equal weights whoever comes',
        ),
        (
            least > recipe.scaffold_clients and recipe.split is None,
            f"for {recipe.scaffold_clients} clients in all, and a round needs {least}: say how many there are in all",
        ),
    )
    return next((why for is_refused, why in refused if is_refused), None)
