"""Tasks whose rows are split among virtual clients: who has which rows, their shards, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from farm_client.data.columns import DataError
from farm_client.data.guarded import RowSource
from farm_client.data.readers import Chain
from farm_client.data.seeds import derived_seed
from farm_client.data.sharding import MAX_SHARDS, PlannedShard, held_rows, sizes_of_shards, split_rows
from farm_client.data.splits import Rows, Values, dealt_to_shards, dirichlet, histograms, iid, values_of
from protocol.data_split import LABEL_CHARS, MOST_PARTS, SHOWN_LABELS, DataPart, SplitName
from protocol.errors import InvalidTask
from protocol.recipe import Recipe
from protocol.tasks import Split

NEEDS_FILES: Final = "a split deals the rows of data files: give --data, or leave split out"


@dataclass(frozen=True)
class DataSplit:
    """A data set's shards by part, the held-out ones last, and the shard of each row ([rows])."""

    planned: list[PlannedShard]
    parts: tuple[DataPart, ...]
    of_rows: Rows

    def shards(self) -> list[PlannedShard]:
        """Return the shards, part by part, and the held-out ones last."""
        return self.planned

    def shard_of(self, first: int, count: int) -> Rows:
        """Return the shard's number of each of ``count`` rows from ``first`` on, as ``sharding.ShardOf``."""
        return self.of_rows[first : first + count]


def split_of(recipe: Recipe, source: RowSource | None, holdout: float) -> DataSplit | None:
    """Return how the recipe's seed splits these rows, or None where it splits none. The same seed: the same split.

    Raises: InvalidTask without data files; DataError where the rows can't be split so.
    """
    if recipe.split is None:
        return None
    if source is None:
        raise InvalidTask(NEEDS_FILES)
    split_rows(source.rows, holdout)  # says what is wrong with the holdout
    rng = np.random.default_rng(derived_seed("split", recipe.seed))
    held = rng.permutation(source.rows)[: held_rows(source.rows, holdout)]
    trained = np.ones(source.rows, bool)
    trained[held] = False
    named = _values(recipe, source)
    of_rows = np.full(source.rows, -1, np.int64)
    of_rows[trained], sources = _parts(recipe, named, trained, rng)
    sizes = np.bincount(of_rows[trained]).tolist()
    row_bytes = source.size_bytes / source.rows
    shards = [sizes_of_shards(size, row_bytes, 1) for size in sizes]
    if (count := sum(map(len, shards))) > MAX_SHARDS:
        raise DataError(f"so many parts would be {count:,} shards, over {MAX_SHARDS:,}: give fewer")
    held_shards = sizes_of_shards(len(held), row_bytes, 1)
    counted: list[dict[str, int]] = [{} for _ in sizes]
    if recipe.split is SplitName.DIRICHLET and named is not None and len(named.names) <= SHOWN_LABELS:
        counted = list(histograms(named, of_rows, len(sizes)))
    parts = [
        DataPart(shards=len(own), samples=size, source=name[:LABEL_CHARS], labels=labels)
        for own, size, name, labels in zip(shards, sizes, sources or [""] * len(sizes), counted, strict=True)
    ]
    plan = [PlannedShard(Split.TRAIN, n) for own in shards for n in own]
    plan += [PlannedShard(Split.HOLDOUT, n) for n in held_shards]
    return DataSplit(plan, tuple(parts), dealt_to_shards(of_rows, shards, held_shards, rng))


def _values(recipe: Recipe, source: RowSource) -> Values | None:
    """Return what each row is split by: a column's values, or its file's name."""
    if recipe.split_by is not None:
        return values_of(source, recipe.split_by)
    if recipe.split is not SplitName.BY_SOURCE:
        return None
    if not isinstance(source, Chain):
        raise DataError('split = "by_source" takes several data files, a source each, or split_by, a column')
    ends = list(accumulate((one.rows for one in source.sources), initial=0))
    of_rows = np.empty(source.rows, np.int64)
    for number, (start, stop) in enumerate(pairwise(ends)):
        of_rows[start:stop] = number
    return Values(tuple(file.name for file in source.files), of_rows)


def _parts(
    recipe: Recipe, named: Values | None, trained: np.ndarray[tuple[int], np.dtype[np.bool_]], rng: np.random.Generator
) -> tuple[Rows, Sequence[str]]:
    """Return the part of each training row, and the sources' names where parts are sources."""
    rows, parts = int(trained.sum()), recipe.split_parts or 0
    if named is None:
        return iid(rows, parts, rng), ()
    values = named.of_rows[trained]
    if recipe.split is SplitName.DIRICHLET:
        return dirichlet(values, parts, recipe.split_alpha or 0.0, rng), ()
    present, of_rows = np.unique(values, return_inverse=True)  # of some sources all rows may be held out
    if len(present) > MOST_PARTS:
        raise DataError(
            f"there are {len(present):,} sources, and {MOST_PARTS:,} parts at most: split by another column"
        )
    return of_rows.astype(np.int64), [named.names[number] for number in present]
