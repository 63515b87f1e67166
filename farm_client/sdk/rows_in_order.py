"""Tasks whose rows are read in order: their data's layout, the size of their rounds, and what is said of both."""

from __future__ import annotations

from farm_client.data.stretches import Stretches
from protocol.recipe import DataOrder, InnerState, Recipe
from protocol.tasks import Dataset
from protocol.wording import counted


def stretches_of(recipe: Recipe, rows: int, size_bytes: int, holdout: float) -> Stretches | None:
    """Return how rows of so many bytes are laid out; None where they are dealt at random.

    Raises: DataError if there are too few.
    """
    if recipe.order is not DataOrder.SEQUENTIAL:
        return None
    return Stretches.of(rows, size_bytes, holdout, streams=recipe.batch_samples, stretches=recipe.min_clients)


def whole_batches(recipe: Recipe, samples: int) -> int:
    """Return the size of a round of at most so many samples: in order, of whole batches of each client."""
    if recipe.order is not DataOrder.SEQUENTIAL:
        return samples
    step = recipe.batch_samples * recipe.min_clients
    return max(samples // step, 1) * step


def order_notes(recipe: Recipe, dataset: Dataset, rows: int, *, has_state: bool) -> tuple[str, ...]:
    """Return, where rows are read in order, a line that says what of that is the plain loop and what is not."""
    if recipe.order is not DataOrder.SEQUENTIAL:
        return ()
    said = f"rows in order: {counted(recipe.batch_samples, 'stream')} side by side"
    if recipe.min_clients > 1:
        said += (
            f" in each of {recipe.min_clients} stretches of the data, one for each client of a round; their weights "
            "are averaged, which is not the plain loop"
        )
    if has_state:
        said += f"; {_of_state(recipe)}"
    left_out = rows - sum(shard.samples for shard in dataset.shards)
    if left_out:
        said += f"; {counted(left_out, 'row')} at the end left out, for streams of equal length"
    return (said,)


def _of_state(recipe: Recipe) -> str:
    if recipe.inner_state is InnerState.CARRIED:
        return "the state goes on from batch to batch, over rounds and clients, and begins anew with each epoch"
    return 'the state goes on from batch to batch, and begins anew with each round: inner_state = "carried" hands it on'
