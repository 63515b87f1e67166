"""Secure aggregation in a recipe: what it asks for, and what contradicts it.

``protocol.secagg`` is the method; ``protocol.secure_messages`` what clients and server say to each other for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from protocol.aggregates import AggregateName
from protocol.compression import CodecName, CodecSpec

if TYPE_CHECKING:
    from protocol.recipe import Recipe

Bits = Literal[32, 64]
LEAST_CLIENTS: Final = 3
"""A sum over two tells each of them the other one's update."""
MOST_CLIENTS: Final = 256
"""Each computes a mask with every other one, over the whole update."""
CLIP: Final = 1.0
"""By how much a number of the model may change in one round, unless the recipe says otherwise."""


def is_secure(recipe: Recipe) -> bool:
    """Whether the server is to learn the sum of a round's updates, and none of them."""
    return recipe.secure_aggregation


def majority(clients: int) -> int:
    """Return how many of so many clients must be left: with fewer, two sums could be unmasked, which differ by one."""
    return clients // 2 + 1


def most_samples(recipe: Recipe) -> int:
    """Return how many samples a round of the recipe has at most.

    An epoch's last one takes along what would be too few for another round.
    """
    return recipe.round_samples + LEAST_CLIENTS - 1


def written_codec(recipe: Recipe) -> CodecSpec:
    """Return the codec in which executors write updates: what is masked afterwards is not compressed before."""
    return CodecSpec(zstd=False) if is_secure(recipe) else recipe.update_codec


def unfit_for_secure_sum(recipe: Recipe, samples: int | None = None) -> str | None:
    """Return which of the recipe's fields a secure sum lacks or can't use, in a sentence.

    ``samples``: those of an epoch, where they are known.
    """
    if not is_secure(recipe):
        return None
    for is_refused, field, why in _refusals(recipe):
        if is_refused:
            return f"secure_aggregation can't be had with {field}: {why}"
    for name, clients in (("min_clients", recipe.min_clients), ("init_min_clients", recipe.init_min_clients)):
        if clients is not None and not LEAST_CLIENTS <= clients <= MOST_CLIENTS:
            return (
                f"with secure_aggregation a round has {LEAST_CLIENTS} to {MOST_CLIENTS} clients, for a sum over fewer "
                f"tells them each other's updates: make {name}, which is {clients}, {LEAST_CLIENTS} or more"
            )
    if samples is not None and samples < LEAST_CLIENTS:
        return f"secure_aggregation needs {LEAST_CLIENTS} samples or more to train on, and there are {samples}"
    if most_samples(recipe) >= 1 << (recipe.secure_bits - 1):
        return f"{recipe.secure_bits} bits are too few for a sum over {recipe.round_samples} samples: raise secure_bits"
    return None


def _refusals(recipe: Recipe) -> tuple[tuple[bool, str, str], ...]:
    """Return what is refused: whether it is there, what it is called, and why it can't be."""
    one_update = "the server would have to see single updates"
    late = "who is late has agreed on masks with nobody of the round that would count it"
    return (
        (recipe.mode != "weights", 'mode = "gradients"', "a round of one step is too short for its four messages"),
        (recipe.buffer is not None, "buffer", late),
        (recipe.quorum_clients is not None, "quorum_clients", late),
        (recipe.max_staleness > 0, "max_staleness", late),
        (recipe.pipeline, "pipeline", late),
        (recipe.aggregate is not AggregateName.MEAN, f'aggregate = "{recipe.aggregate}"', one_update),
        (recipe.dp_clip is not None, "dp_clip", f"{one_update} to clip them"),
        (recipe.update_codec.name is not CodecName.NONE, "an update_codec", "no codec makes masks smaller"),
        (recipe.fragments > 1, "fragments", "masks are agreed on for whole updates"),
        (recipe.scaffold_clients > 0, "scaffold_clients", "control variates would travel beside the masks"),
        (recipe.inner_state == "carried", 'inner_state = "carried"', "an optimizer's state would travel unmasked"),
        (recipe.over_provision > 0, "over_provision", "a round's clients are fixed before they begin"),
        (recipe.part_samples is not None, "part_samples", "each client has one part of a round"),
        (recipe.split is not None, "split", "each client has one part of a round"),
        (recipe.order == "sequential", 'order = "sequential"', "a round's parts follow the clients that agree on keys"),
    )
