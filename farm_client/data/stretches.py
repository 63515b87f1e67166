"""Lay a data set out to be read in order: contiguous stretches, each as contiguous streams side by side.

A batch is one row of each stream of a stretch, and the next batch has the next rows: what ``batchify`` of PyTorch's
``word_language_model`` does to a corpus. A shard is a part of one stretch, in whole batches; in its file are its rows
of the first stream, then those of the second one, and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import DataError
from farm_client.data.sharding import MAX_SHARDS, SHARD_BYTES, PlannedShard, split_rows
from protocol.tasks import Split


@dataclass(frozen=True)
class Stretches:
    """Where each row of a data set goes. The rows that are held out are the last ones, a stretch of their own.

    ``train_rows`` and ``held_rows`` are those of one stream, so that streams have equal lengths; ``first_held`` is the
    first row that is held out. ``parts`` and ``held_parts`` say in how many shards a stretch is cut.
    """

    rows: int
    streams: int
    stretches: int
    train_rows: int
    held_rows: int
    first_held: int
    parts: int
    held_parts: int

    @classmethod
    def of(cls, rows: int, size_bytes: int, holdout: float, *, streams: int, stretches: int) -> Stretches:
        """Lay out so many rows. Raises: DataError if there are too few for one batch, or as ``split_rows``."""
        train, held = split_rows(rows, holdout)
        train_rows, held_rows = train // (streams * stretches), held // streams
        for name, count, length, side_by_side in (
            ("to train on", train, train_rows, streams * stretches),
            ("held out", held, held_rows, streams),
        ):
            if count and not length:
                raise DataError(
                    f"there are {count} rows {name}, and {side_by_side} streams are read side by side: lower "
                    "batch_samples, or give more data"
                )
        stream_bytes = size_bytes / rows * streams
        return cls(
            rows=rows,
            streams=streams,
            stretches=stretches,
            train_rows=train_rows,
            held_rows=held_rows,
            first_held=train,
            parts=_parts(train_rows, stream_bytes, MAX_SHARDS // stretches),
            held_parts=_parts(held_rows, stream_bytes, MAX_SHARDS) if held_rows else 0,
        )

    @property
    def left_out(self) -> int:
        """Count the rows that no stream has room for, at the ends of both splits."""
        return self.rows - self.streams * (self.stretches * self.train_rows + self.held_rows)

    def shards(self) -> list[PlannedShard]:
        """Return the shards, the first part of each stretch first, and the held-out ones last."""
        whole = self.streams * self.train_rows
        train = [
            self._shard(Split.TRAIN, stretch * whole, start, stop)
            for start, stop in pairwise(self._bounds(Split.TRAIN))
            for stretch in range(self.stretches)
        ]
        held = pairwise(self._bounds(Split.HOLDOUT))
        return train + [self._shard(Split.HOLDOUT, self.first_held, start, stop) for start, stop in held]

    def shard_of(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the shard's number of each of ``count`` rows from ``first`` on, as ``sharding.ShardOf``."""
        rows = np.arange(first, first + count)
        found = np.full(count, self.parts * self.stretches + self.held_parts, np.int64)
        whole = self.streams * self.train_rows
        train = rows < whole * self.stretches
        part = self._part_of(rows[train] % self.train_rows, Split.TRAIN)
        found[train] = part * self.stretches + rows[train] // whole
        if self.held_rows:
            past = rows - self.first_held
            held = (past >= 0) & (past < self.streams * self.held_rows)
            part = self._part_of(past[held] % self.held_rows, Split.HOLDOUT)
            found[held] = self.parts * self.stretches + part
        return found

    def _shard(self, split: Split, first: int, start: int, stop: int) -> PlannedShard:
        stride = self.train_rows if split is Split.TRAIN else self.held_rows
        return PlannedShard(split, self.streams * (stop - start), first + start, stride)

    def _part_of(self, places: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """Return which part of its stretch each place of a stream is in."""
        return np.searchsorted(self._bounds(split), places, side="right") - 1

    def _bounds(self, split: Split) -> list[int]:
        """Return the places of a stream at which its parts begin, and its end; parts differ by one row at most."""
        length, parts = (self.train_rows, self.parts) if split is Split.TRAIN else (self.held_rows, self.held_parts)
        return [length * part // parts for part in range(parts + 1)] if length else []


def _parts(length: int, stream_bytes: float, most: int) -> int:
    return max(1, min(math.ceil(length * stream_bytes / SHARD_BYTES), most, length))
