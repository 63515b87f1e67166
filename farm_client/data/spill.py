"""Rows on disk, regrouped by shard: append-only files, so that a data set of any size needs bounded memory.

Each block is sorted by shard and appended to one file a column; a shard is later read as its run of each block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, ByteRows, Column, Values

_LENGTH_BYTES = 8


class Spill:
    """Takes blocks with a shard number for each row, and gives each shard's rows back in the order they came.

    A context manager: its files live in ``folder`` until it closes.
    """

    def __init__(self, folder: Path, columns: tuple[Column, ...], shards: int) -> None:
        self._columns = columns
        self._shards = shards
        self._stack = ExitStack()
        files = [self._new_file(folder / f"column-{i}") for i in range(len(columns))]
        self._stores: dict[str, _FixedStore | _TextStore] = {}
        for i, column in enumerate(columns):
            lengths = self._new_file(folder / f"lengths-{i}") if column.is_text else None
            self._stores[column.name] = (
                _TextStore(files[i], lengths) if lengths else _FixedStore(files[i], column.row_bytes)
            )

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def add(self, block: Block, shard_of_row: NDArray[np.int64]) -> None:
        """Append a block; ``shard_of_row`` is [rows]."""
        order = np.argsort(shard_of_row, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(shard_of_row, minlength=self._shards))))
        for name, values in block.values.items():
            self._stores[name].add(values, order, starts)

    def read(self, shard: int) -> dict[str, Values]:
        """Return all rows of one shard, by column."""
        return {name: store.read(shard) for name, store in self._stores.items()}

    def _new_file(self, path: Path) -> IO[bytes]:
        return self._stack.enter_context(path.open("x+b"))


class _FixedStore:
    """Rows of equal size."""

    def __init__(self, file: IO[bytes], row_bytes: int) -> None:
        self._file = file
        self._row_bytes = row_bytes
        self._rows = 0
        self._runs: list[tuple[int, NDArray[np.int64]]] = []

    def add(self, values: Values, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        rows = np.asarray(values)[order]
        self._file.seek(self._rows * self._row_bytes)
        self._file.write(rows.data)
        self._runs.append((self._rows, starts))
        self._rows += len(rows)

    def read(self, shard: int) -> ByteRows:
        data = b"".join(self.run(block, shard) for block in range(len(self._runs)))
        return np.frombuffer(data, np.uint8).reshape(-1, self._row_bytes)

    def run(self, block: int, shard: int) -> bytes:
        """Return the bytes of a shard's rows in one block."""
        first, starts = self._runs[block]
        begin, end = int(starts[shard]), int(starts[shard + 1])
        self._file.seek((first + begin) * self._row_bytes)
        return self._file.read((end - begin) * self._row_bytes)


class _TextStore:
    """Strings: their bytes one after the other, and their lengths in a store of equal rows."""

    def __init__(self, file: IO[bytes], lengths: IO[bytes]) -> None:
        self._file = file
        self._lengths = _FixedStore(lengths, _LENGTH_BYTES)
        self._bytes = 0
        self._runs: list[NDArray[np.int64]] = []

    def add(self, values: Values, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        ends = np.concatenate(([0], np.cumsum(lengths[order])))
        self._lengths.add(lengths.view(np.uint8).reshape(-1, _LENGTH_BYTES), order, starts)
        self._file.seek(self._bytes)
        self._file.writelines(bytes(values[i]) for i in order.tolist())
        self._runs.append(self._bytes + ends[starts])
        self._bytes += int(ends[-1])

    def read(self, shard: int) -> list[bytes]:
        return [text for block in range(len(self._runs)) for text in self._run(block, shard)]

    def _run(self, block: int, shard: int) -> Iterator[bytes]:
        begin, end = self._runs[block][shard : shard + 2].tolist()
        self._file.seek(begin)
        data = self._file.read(end - begin)
        at = 0
        for length in np.frombuffer(self._lengths.run(block, shard), np.int64).tolist():
            yield data[at : at + length]
            at += length
