"""Asynchronous recipes: clients never wait for each other, and what does not go with that is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

MOST_STALENESS: Final = 16
"""How many versions late an update may be; with ``buffer`` also where the recipe does not say."""


class AsynchronousFields(Protocol):
    """What of a recipe decides whether it is asynchronous, and what would contradict that."""

    @property
    def buffer(self) -> int | None:
        """Results of a commit; None: rounds."""

    @property
    def max_staleness(self) -> int:
        """How many versions late an update may be."""

    @property
    def pipeline(self) -> bool:
        """Whether clients begin the round to come."""

    @property
    def quorum(self) -> float:
        """The share of a round's samples that commits it at the longest time."""

    @property
    def over_provision(self) -> float:
        """The share that a round hands out beyond what it needs."""


def with_stale_updates(record: Any) -> Any:
    """Return a recipe's record with the longest ``max_staleness``, unless it says one, where it has a ``buffer``."""
    if isinstance(record, Mapping) and record.get("buffer") is not None and "max_staleness" not in record:
        return {**record, "max_staleness": MOST_STALENESS}
    return record


def asynchronous_problem(recipe: AsynchronousFields, *, averages_weights: bool) -> str | None:
    """Return what contradicts ``buffer``, in a sentence, or None. ``averages_weights``: the mode is weights."""
    if recipe.buffer is None:
        return None
    if not averages_weights:
        return "buffer is for weights mode: in gradients mode a version is the gradient of exactly one global batch"
    if not recipe.max_staleness:
        return "buffer needs a max_staleness of 1 or more: its updates are of different versions"
    if recipe.pipeline:
        return "buffer gives a client its next part as soon as it is free: leave pipeline out"
    if recipe.quorum < 1 or recipe.over_provision:
        return "buffer commits after so many results, whoever brings them: leave quorum and over_provision out"
    return None
