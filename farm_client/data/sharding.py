"""Cut a data set into shards: rows dealt at random by a seed, sizes that differ by one at most, bounded memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, DataError
from farm_client.data.guarded import RowSource
from farm_client.data.seeds import derived_seed
from farm_client.data.shard_file import write_shard_file
from farm_client.data.spill import Spill
from protocol.digests import new_hasher
from protocol.tasks import BlobRef, Shard, Split

SHARD_BYTES: Final = 4 << 20
MIN_TRAIN_SHARDS: Final = 16
"""So that a small data set can still be shared by many clients."""
MIN_HOLDOUT_SHARDS: Final = 4
MAX_SHARDS: Final = 4096
"""Of each split."""
BLOCK_BYTES: Final = 32 << 20
"""Rows held in memory at a time while dealing."""


ShardOf = Callable[[int, int], NDArray[np.int64]]
"""Says which shard each of some rows is in ([rows]), given the first one's number and how many they are; the number of
shards for one that is in none. It is asked for all rows of the data set, in order."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard that is to be: its split, its number of rows, and where they are, as ``Shard`` says it."""

    split: Split
    samples: int
    start: int = 0
    stride: int = 0

    def shard(self, index: int, blob: BlobRef | None = None) -> Shard:
        """Return it as a task's data set has it."""
        return Shard(
            index=index, split=self.split, samples=self.samples, start=self.start, stride=self.stride, blob=blob
        )


def held_rows(rows: int, holdout: float) -> int:
    """Return how many of the rows are kept back for evaluation."""
    return max(1, round(rows * holdout)) if holdout else 0


def plan_shards(rows: int, size_bytes: int, holdout: float) -> list[PlannedShard]:
    """Return the shards for a data set of so many rows and bytes, training ones first.

    ``holdout`` is the fraction of rows kept back for evaluation, from 0 to below 1: at least one row if it is over 0.
    Raises: DataError if no training row would be left, or the fraction is out of range.
    """
    train, held = split_rows(rows, holdout)
    row_bytes = size_bytes / rows
    sizes = sizes_of_shards(train, row_bytes, MIN_TRAIN_SHARDS)
    kept = sizes_of_shards(held, row_bytes, MIN_HOLDOUT_SHARDS)
    return [PlannedShard(Split.TRAIN, n) for n in sizes] + [PlannedShard(Split.HOLDOUT, n) for n in kept]


def split_rows(rows: int, holdout: float) -> tuple[int, int]:
    """Return how many of the rows are trained on, and how many are held out. Raises: as ``plan_shards``."""
    if not 0 <= holdout < 1:
        raise DataError(f"the holdout is {holdout}; it is a fraction from 0 to below 1, such as 0.2")
    held = held_rows(rows, holdout)
    if rows - held < 1:
        raise DataError(f"the data set has {rows} rows: none is left to train on with a holdout of {holdout}")
    return rows - held, held


def write_shards(
    source: RowSource,
    plan: list[PlannedShard],
    folder: Path,
    seed: int,
    on_rows: Callable[[int, int], None] | None = None,
    *,
    shard_of: ShardOf | None = None,
) -> tuple[list[Shard], dict[str, Path]]:
    """Deal the rows to shards and write each as a file in ``folder``, with its rows in the order of the data.

    ``on_rows`` is told (rows read, rows in all). Which rows are held out, and which shard a row is in, depends only
    on the rows' order and the seed, or is what ``shard_of`` says. Returns the shards and their files by digest.
    """
    shards: list[Shard] = []
    files: dict[str, Path] = {}
    read_rows = 0
    with (
        tempfile.TemporaryDirectory(prefix="spill-", dir=folder) as scratch,
        Spill(Path(scratch), source.columns, len(plan) + 1) as spill,
    ):
        for block, shard_of_row in _dealt(source, shard_of or _at_random(plan, seed)):
            spill.add(block, shard_of_row)
            read_rows += block.rows
            if on_rows is not None:
                on_rows(read_rows, source.rows)
        for index, planned in enumerate(plan):
            path = folder / f"{index:05d}.safetensors"
            write_shard_file(path, source.columns, spill.read(index))
            blob = blob_of(path)
            shards.append(planned.shard(index, blob))
            files[blob.digest] = path
    return shards, files


def write_sample(source: RowSource, rows: int, path: Path) -> int:
    """Write the first rows as a shard file, for a trial before the whole data set is read; returns their number."""
    block = next(iter(source.blocks(min(rows, source.rows))))
    write_shard_file(path, source.columns, block.values)
    return block.rows


def blob_of(path: Path) -> BlobRef:
    """Return the reference to a file's bytes."""
    return BlobRef(digest=new_hasher().update_mmap(path).hexdigest(), size_bytes=path.stat().st_size)


def sizes_of_shards(rows: int, row_bytes: float, at_least: int) -> list[int]:
    """Return the sizes of as many shards as so many rows of so many bytes make: they differ by one at most."""
    if rows == 0:
        return []
    wanted = max(at_least, math.ceil(rows * row_bytes / SHARD_BYTES))
    count = min(wanted, MAX_SHARDS, rows)
    small, larger = divmod(rows, count)
    return [small + 1] * larger + [small] * (count - larger)


def _at_random(plan: list[PlannedShard], seed: int) -> ShardOf:
    """Return what draws, for each row in turn, one of the places that are left in the shards."""
    # The bare seed would give numpy's stream of that seed, and a researcher may have shuffled the rows by just that:
    # dealing by the same permutation puts them back in order.
    rng = np.random.default_rng(derived_seed("deal", seed))
    places = np.array([planned.samples for planned in plan], np.int64)

    def draw(_first: int, count: int) -> NDArray[np.int64]:
        taken = rng.multivariate_hypergeometric(places, count, method="marginals")
        places[:] -= taken
        return rng.permutation(np.repeat(np.arange(len(plan)), taken))

    return draw


def _dealt(source: RowSource, shard_of: ShardOf) -> Iterator[tuple[Block, NDArray[np.int64]]]:
    """Yield blocks with a shard for each row."""
    block_rows, first = max(1, int(BLOCK_BYTES / max(1.0, source.size_bytes / source.rows))), 0
    for block in source.blocks(block_rows):
        yield block, shard_of(first, block.rows)
        first += block.rows
