"""How training rows are dealt to virtual clients, as papers on federated learning do: fields of a recipe, and a record.

Each part of a round is then of one virtual client's rows, whichever machine computes it. An epoch still has each row
once: what changes is which rows train together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from protocol.bounds import Count, Positive
from protocol.frozen import Frozen

if TYPE_CHECKING:
    from protocol.recipe import Recipe

MOST_PARTS: Final = 1024
SHOWN_LABELS: Final = 32
"""Of so many labels a part's counts are recorded; those of more are not."""
LABEL_CHARS: Final = 64


class SplitName(StrEnum):
    """Which rows a virtual client has."""

    IID = "iid"
    """Any: rows are dealt at random to ``split_parts`` clients, as many to each."""
    DIRICHLET = "dirichlet"
    """Of each label its own share: for each of ``split_parts`` clients, with as many rows each, the shares of the
    labels in ``split_by`` are drawn from a Dirichlet distribution with ``split_alpha`` times the data's own shares
    (Hsu, Qi and Brown, arXiv:1909.06335). 100 is nearly IID, 0.1 a label or two for each client."""
    BY_SOURCE = "by_source"
    """Those of one source, such as a writer or a hospital: a client for each value of the column ``split_by``, or for
    each data file where none is named."""


class DataPart(Frozen):
    """One virtual client: its training shards, which follow those of the part before, and what is in them."""

    shards: Positive
    samples: Positive
    source: str = Field(default="", max_length=LABEL_CHARS)
    labels: dict[str, Count] = Field(default_factory=dict, max_length=SHOWN_LABELS)


def with_split_parts(recipe: Any) -> Any:
    """Return a recipe's record with fixed parts, unless it says otherwise, where its rows are split."""
    if isinstance(recipe, Mapping) and recipe.get("split") is not None and "parts" not in recipe:
        return {**recipe, "parts": "fixed"}
    return recipe


def split_problem(recipe: Recipe) -> str | None:
    """Return what of a recipe does not go with its split, or is missing for it."""
    if recipe.split is None:
        said = [name for name in ("split_parts", "split_alpha", "split_by") if getattr(recipe, name) is not None]
        return f'{said[0]} is for a split: add split = "dirichlet", or leave it out' if said else None
    return _of_fields(recipe, recipe.split) or _of_others(recipe)


def _of_fields(recipe: Recipe, split: SplitName) -> str | None:
    if (split is SplitName.DIRICHLET) != (recipe.split_alpha is not None):
        return 'split = "dirichlet" and a split_alpha, such as 0.5, need each other'
    if (split is SplitName.BY_SOURCE) == (recipe.split_parts is not None):
        return (
            'split = "by_source" has a part for each source: leave split_parts out'
            if split is SplitName.BY_SOURCE
            else f'split = "{split}" needs split_parts, the number of virtual clients'
        )
    if split is SplitName.DIRICHLET and recipe.split_by is None:
        return 'split = "dirichlet" needs split_by, the column of the labels'
    if split is SplitName.IID and recipe.split_by is not None:
        return 'split = "iid" looks at no column: leave split_by out'
    return None


def _of_others(recipe: Recipe) -> str | None:
    if recipe.mode == "gradients":
        return "a split is for weights mode: an exact gradient is the same however its rows are dealt"
    if recipe.order == "sequential":
        return 'a split deals rows to virtual clients, and order = "sequential" keeps them in order: leave one out'
    if recipe.parts != "fixed" or recipe.part_samples is not None:
        return "a round of a split has one part for each virtual client: leave parts and part_samples out"
    if recipe.scaffold_clients and recipe.split_parts is not None and recipe.scaffold_clients != recipe.split_parts:
        return (
            f"SCAFFOLD's clients are the split's: say scaffold_clients = {recipe.split_parts}, as many as split_parts"
        )
    return None
