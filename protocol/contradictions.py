"""Settings that are each fine and together can never be met: refused at submission, before anything waits for ever.

Apart from ``Recipe``'s own validators, because a ledger may hold a task of before, which must still be read.
"""

from __future__ import annotations

from protocol.aggregates import votes_needed
from protocol.compression import OF_VERSIONS
from protocol.heloco import unfit_for_heloco
from protocol.local_objective import refused_objective
from protocol.optimizers import OPTIMIZERS
from protocol.recipe import DataOrder, Mode, PartSizes, Recipe
from protocol.secure_aggregation import unfit_for_secure_sum
from protocol.task_length import global_steps
from protocol.tasks import Dataset, Split


def contradiction(recipe: Recipe, dataset: Dataset | None = None) -> str | None:
    """Return what cannot be met, in a sentence, or None. ``dataset``: of the recipe that is submitted, complete."""
    return (
        _of_optimizer(recipe)
        or unfit_for_heloco(recipe)
        or refused_objective(recipe)
        or _of_secure_sum(recipe, dataset)
        or _of_codecs(recipe)
        or _of_clients(recipe)
        or _of_schedule(recipe, dataset)
        or _of_best(recipe, dataset)
        or _of_early_stops(recipe, dataset)
        or _of_samples(recipe, dataset)
        or (_of_order(recipe, dataset) if dataset is not None else None)
        or _of_votes(recipe, dataset)
        or (_of_split(recipe, dataset) if dataset is not None else None)
    )


def _of_optimizer(recipe: Recipe) -> str | None:
    outer = recipe.outer
    for group in outer.groups or (None,):
        options = outer.options if group is None else {**outer.options, **group.options}
        if (problem := OPTIMIZERS[outer.name].problem(options)) is not None:
            return f"the outer optimizer {outer.name} {problem}"
    return None


def _of_secure_sum(recipe: Recipe, dataset: Dataset | None) -> str | None:
    return unfit_for_secure_sum(recipe, None if dataset is None else dataset.samples(Split.TRAIN))


def _of_codecs(recipe: Recipe) -> str | None:
    if (name := recipe.update_codec.name) in OF_VERSIONS:
        return f"codec {name} says how versions of the weights differ: it is for weights_codec, not for update_codec"
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


def _of_order(recipe: Recipe, dataset: Dataset) -> str | None:
    """Of rows in order each round must be whole batches of equal parts, of data that was laid out for just that."""
    if recipe.order is not DataOrder.SEQUENTIAL:
        laid_out = any(shard.stride for shard in dataset.shards)
        return 'the data was laid out to be read in order: add order = "sequential"' if laid_out else None
    step = recipe.batch_samples * recipe.min_clients
    if recipe.round_samples % step:
        return (
            f'with order = "sequential" a round is whole batches of each client: make round_samples, which is '
            f"{recipe.round_samples}, a multiple of {step} (batch_samples x min_clients)"
        )
    if _is_laid_out(recipe, dataset):
        return None
    return "the data was laid out for other batch_samples or min_clients, or in no order: submit it with these"


def _of_split(recipe: Recipe, dataset: Dataset) -> str | None:
    if dataset.parts and recipe.scaffold_clients not in {0, len(dataset.parts)}:
        return f"SCAFFOLD's clients are the split's, which has {len(dataset.parts)}: say so in scaffold_clients"
    if (recipe.split is None) == (not dataset.parts):
        return None
    if recipe.split is None:
        return "the data was dealt to virtual clients: add the split that it was dealt by, or submit it anew"
    return "the data was not dealt to virtual clients: submit it with its split"


def _is_laid_out(recipe: Recipe, dataset: Dataset) -> bool:
    """Whether shard ``j * min_clients + n`` is part ``j`` of stretch ``n``, in whole batches."""
    train, stretches = dataset.of(Split.TRAIN), recipe.min_clients
    stream_rows = dataset.samples(Split.TRAIN) // (recipe.batch_samples * stretches)
    return (
        len(train) % stretches == 0
        and train == dataset.shards[: len(train)]
        and all(shard.samples == train[i - i % stretches].samples for i, shard in enumerate(train))
        and all(shard.stride == stream_rows for shard in train)
        and all(shard.samples % recipe.batch_samples == 0 and shard.stride for shard in dataset.shards)
    )


def _of_votes(recipe: Recipe, dataset: Dataset | None) -> str | None:
    """With fewer clients a robust aggregate would not bear what it promises."""
    need = votes_needed(recipe.aggregate, recipe.byzantine)
    liars = f" with byzantine = {recipe.byzantine}" if recipe.byzantine else ""
    named = f'aggregate = "{recipe.aggregate}"{liars} needs {need} clients or more in each round'
    for name, least in (("min_clients", recipe.min_clients), ("init_min_clients", recipe.init_min_clients)):
        if least is not None and least < need:
            return f"{named}, and {name} is {least}: make it {need} or more"
    if dataset is not None and (parts := _most_parts(recipe)) < need:
        more = "raise round_samples, or lower batch_samples or part_samples"
        return f"{named}, and a round has {parts} at most: {more}"
    return None


def _most_parts(recipe: Recipe) -> int:
    """Return how many parts of a round there can be, whoever comes."""
    unit = recipe.batch_samples if recipe.mode is Mode.WEIGHTS else 1
    if recipe.parts is PartSizes.SPEED:
        return max(recipe.round_samples // unit, 1)
    size = recipe.part_samples or -(-recipe.round_samples // (recipe.min_clients * unit)) * unit
    return -(-recipe.round_samples // size)
