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
    def quorum_clients(self) -> int | None:
        """Different clients of a commit; None: rounds, or ``buffer``."""

    @property
    def max_clients(self) -> int | None:
        """The most clients of the task."""

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
    """Return a recipe's record with the longest ``max_staleness``, unless it says one, where it is asynchronous."""
    if not isinstance(record, Mapping) or "max_staleness" in record:
        return record
    is_asynchronous = any(record.get(name) is not None for name in ("buffer", "quorum_clients"))
    return {**record, "max_staleness": MOST_STALENESS} if is_asynchronous else record


def asynchronous_problem(recipe: AsynchronousFields, *, averages_weights: bool) -> str | None:
    """Return what contradicts an asynchronous recipe, in a sentence. ``averages_weights``: the mode is weights."""
    if recipe.buffer is None and recipe.quorum_clients is None:
        return None
    name, most = "quorum_clients" if recipe.buffer is None else "buffer", recipe.max_clients
    quorum = recipe.quorum_clients or 0
    checks = (
        (
            recipe.buffer is None or recipe.quorum_clients is None,
            "buffer counts results and quorum_clients counts clients: leave one of them out",
        ),
        (averages_weights, f"{name} is for weights mode: in gradients mode a version is exactly one global batch"),
        (recipe.max_staleness > 0, f"{name} needs a max_staleness of 1 or more: its updates are of different versions"),
        (not recipe.pipeline, f"{name} gives a client its next part as soon as it is free: leave pipeline out"),
        (
            recipe.quorum == 1 and not recipe.over_provision,
            f"{name} says what a version is of, and not a share of samples: leave quorum and over_provision out",
        ),
        (
            most is None or quorum <= most,
            f"quorum_clients is {quorum} and max_clients is {most}: no version could be made; lower one",
        ),
    )
    return next((why for is_met, why in checks if not is_met), None)
