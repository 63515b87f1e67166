"""Deal the rows of a data set to virtual clients: at random, by Dirichlet-drawn labels, or by their source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import DataError
from farm_client.data.guarded import RowSource

READ_ROWS: Final = 65_536
_WHOLE: Final = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "<u1"}

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """A column whose values are few: which ones there are, and the number of each row's ([rows])."""

    names: tuple[str, ...]
    of_rows: Rows


def values_of(source: RowSource, column: str) -> Values:
    """Read a column of whole numbers or strings. Raises: DataError if there is none of that name and kind."""
    known = {one.name: one for one in source.columns}
    if (found := known.get(column)) is None:
        raise DataError(f"split_by is {column!r}, and the columns are {', '.join(known)}")
    if not found.is_text and (found.shape or found.dtype not in _WHOLE):
        raise DataError(
            f"split_by is {column!r}, whose rows are {found.dtype} {list(found.shape)}: it takes a column of one whole "
            "number or string a row"
        )
    parts: list[NDArray[np.generic]] = []
    for block in source.blocks(READ_ROWS):
        values = block.values[column]
        if isinstance(values, list):
            parts.append(np.array([value.decode() for value in values], dtype=object))
        else:
            parts.append(np.ascontiguousarray(values).view(_WHOLE[found.dtype]).reshape(-1))
    names, of_rows = np.unique(np.concatenate(parts), return_inverse=True)
    return Values(tuple(str(name) for name in names.tolist()), of_rows.astype(np.int64))


def iid(rows: int, parts: int, rng: np.random.Generator) -> Rows:
    """Return the part of each row ([rows]): at random, sizes that differ by one at most. Raises: DataError."""
    _check_enough(rows, parts)
    return rng.permutation(np.arange(rows) % parts)


def dirichlet(labels: Rows, parts: int, alpha: float, rng: np.random.Generator) -> Rows:
    """Return the part of each row ([rows]), given its label's number ([rows]); sizes differ by one at most.

    For each part q ~ Dir(alpha * p) with p the labels' shares of all rows; its rows are drawn without replacement with
    label probabilities q, renormalized over the labels that have rows left. Source: Hsu, Qi and Brown, "Measuring the
    Effects of Non-Identical Data Distribution for Federated Visual Classification", arXiv:1909.06335, section 3.
    Raises: DataError.
    """
    _check_enough(len(labels), parts)
    left = np.bincount(labels)
    shares = left / left.sum()
    counts = np.zeros((parts, len(left)), np.int64)
    for number in rng.permutation(parts):
        missing = len(labels) // parts + int(number < len(labels) % parts)
        chances = rng.dirichlet(alpha * shares[shares > 0])
        wanted = np.zeros(len(left))
        wanted[shares > 0] = chances
        while missing:
            usable = np.where(left > 0, wanted, 0.0)
            if usable.sum() <= 0:  # all labels that it wants are used up
                usable = left.astype(float)
            drawn = np.minimum(rng.multinomial(missing, usable / usable.sum()), left)
            counts[number] += drawn
            left -= drawn
            missing -= int(drawn.sum())
    found = np.empty(len(labels), np.int64)
    for label in range(len(left)):
        found[labels == label] = rng.permutation(np.repeat(np.arange(parts), counts[:, label]))
    return found


def _check_enough(rows: int, parts: int) -> None:
    if rows < parts:
        raise DataError(f"there are {rows} rows to train on, and split_parts is {parts}: each part needs a row")


def histograms(labels: Values, of_rows: Rows, parts: int) -> Iterator[dict[str, int]]:
    """Yield how many rows of each label each part has, those without any left out. ``of_rows``: -1 is in no part."""
    trained = of_rows >= 0
    counts = np.zeros((parts, len(labels.names)), np.int64)
    np.add.at(counts, (of_rows[trained], labels.of_rows[trained]), 1)
    for row in counts.tolist():
        yield {name: count for name, count in zip(labels.names, row, strict=True) if count}


def dealt_to_shards(
    of_rows: Rows, shards: Sequence[Sequence[int]], held: Sequence[int], rng: np.random.Generator
) -> Rows:
    """Return the shard of each row ([rows]): within its part at random. ``of_rows`` -1 is held out.

    ``shards`` are the sizes of each part's shards, numbered one after the other, and ``held`` those of the held-out
    ones after them.
    """
    found = np.empty(len(of_rows), np.int64)
    first = 0
    for number, sizes in [*enumerate(shards), (-1, held)]:
        places = np.repeat(np.arange(first, first + len(sizes)), sizes)
        found[of_rows == number] = rng.permutation(places)
        first += len(sizes)
    return found
