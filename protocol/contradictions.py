"""Settings that are each fine and together can never be met: refused at submission, before anything waits for ever.

Apart from ``Recipe``'s own validators, because a ledger may hold a task of before, which must still be read.
"""

from __future__ import annotations

from protocol.optimizers import OPTIMIZERS
from protocol.recipe import ROBUST_VOTES, AggregateName, Mode, PartSizes, Recipe
from protocol.task_length import global_steps
from protocol.tasks import Dataset, Split


def contradiction(recipe: Recipe, dataset: Dataset | None = None) -> str | None:
    """Return what cannot be met, in a sentence, or None. ``dataset``: of the recipe that is submitted, complete."""
    return (
        _of_optimizer(recipe)
        or _of_clients(recipe)
        or _of_schedule(recipe, dataset)
        or _of_best(recipe, dataset)
        or _of_early_stops(recipe, dataset)
        or _of_samples(recipe, dataset)
        or _of_votes(recipe, dataset)
    )


def _of_optimizer(recipe: Recipe) -> str | None:
    outer = recipe.outer
    for group in outer.groups or (None,):
        options = outer.options if group is None else {**outer.options, **group.options}
        if (problem := OPTIMIZERS[outer.name].problem(options)) is not None:
            return f"the outer optimizer {outer.name} {problem}"
    return None


def _of_clients(recipe: Recipe) -> str | None:
    most = recipe.max_clients
    for name, least in (("min_clients", recipe.min_clients), ("init_min_clients", recipe.init_min_clients)):
        if most is not None and least is not None and least > most:
            return f"{name} is {least} and max_clients is {most}: no round could begin; raise one or lower the other"
    return None


def _of_schedule(recipe: Recipe, dataset: Dataset | None) -> str | None:
    if recipe.schedule is None or dataset is None:
        return None
    steps = global_steps(recipe, dataset.samples(Split.TRAIN))
    warmup = recipe.schedule.warmup_steps(steps)
    if warmup <= steps:
        return None
    of_what = "rounds" if recipe.mode is Mode.GRADIENTS else f"batches of {recipe.batch_samples}"
    return f"the schedule's warmup is {warmup:,} steps, and the task has {steps:,} ({of_what}): make it shorter"


def _of_best(recipe: Recipe, dataset: Dataset | None) -> str | None:
    if recipe.keep_best is None:
        return None
    if not recipe.evaluate_every:
        return "keep_best needs evaluations, and evaluate_every is 0: leave one of them out"
    if dataset is not None and not dataset.samples(Split.HOLDOUT):
        return "keep_best needs held-out samples to measure on, and there are none: give a holdout, such as 0.2"
    return None


def _of_early_stops(recipe: Recipe, dataset: Dataset | None) -> str | None:
    if recipe.patience is not None and recipe.keep_best is None:
        return "patience needs a metric that should get better: add keep_best, such as min:loss"
    if recipe.target is None:
        return None
    if not recipe.evaluate_every:
        return "target needs evaluations, and evaluate_every is 0: leave one of them out"
    if dataset is not None and not dataset.samples(Split.HOLDOUT):
        return "target needs held-out samples to measure on, and there are none: give a holdout, such as 0.2"
    return None


def _of_samples(recipe: Recipe, dataset: Dataset | None) -> str | None:
    least = max(recipe.min_clients, recipe.init_min_clients or 1)
    if dataset is None or least <= recipe.round_samples:
        return None
    return f"a round of {recipe.round_samples} samples cannot be shared by {least} clients: raise round_samples"


def _of_votes(recipe: Recipe, dataset: Dataset | None) -> str | None:
    """Of one or two updates a robust aggregate is the mean: it would not be robust at all."""
    if recipe.aggregate is AggregateName.MEAN:
        return None
    named = f'aggregate = "{recipe.aggregate}" bears a wrong update among {ROBUST_VOTES} or more'
    for name, least in (("min_clients", recipe.min_clients), ("init_min_clients", recipe.init_min_clients)):
        if least is not None and least < ROBUST_VOTES:
            return f"{named}, and {name} is {least}: make it {ROBUST_VOTES} or more"
    if dataset is not None and (parts := _most_parts(recipe)) < ROBUST_VOTES:
        return f"{named}, and a round has {parts} at most: raise round_samples, or lower batch_samples or part_samples"
    return None


def _most_parts(recipe: Recipe) -> int:
    """Return how many parts of a round there can be, whoever comes."""
    unit = recipe.batch_samples if recipe.mode is Mode.WEIGHTS else 1
    if recipe.parts is PartSizes.SPEED:
        return max(recipe.round_samples // unit, 1)
    size = recipe.part_samples or -(-recipe.round_samples // (recipe.min_clients * unit)) * unit
    return -(-recipe.round_samples // size)
