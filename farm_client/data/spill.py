"""Rows on disk, regrouped by shard: one append-only file, so that a data set of any size needs bounded memory.

Each block is sorted by shard and appended, column by column; a shard is later read as its run of each block. One file
for all columns, because a table may have more of them than a process may have open files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, ByteRows, Column, Values

_LENGTH_BYTES = 8


class Spill:
    """Takes blocks with a shard number for each row, and gives each shard's rows back in the order they came.

    A context manager: its file lives in ``folder`` until it closes.
    """

    def __init__(self, folder: Path, columns: tuple[Column, ...], shards: int) -> None:
        self._shards = shards
        self._file = _AppendedFile((folder / "columns").open("x+b"))
        self._stores: dict[str, _FixedStore | _TextStore] = {
            column.name: _TextStore(self._file) if column.is_text else _FixedStore(self._file, column.row_bytes)
            for column in columns
        }

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def add(self, block: Block, shard_of_row: NDArray[np.int64]) -> None:
        """Append a block; ``shard_of_row`` is [rows]."""
        order = np.argsort(shard_of_row, kind="stable")
        starts = np.concatenate(([0], np.cumsum(np.bincount(shard_of_row, minlength=self._shards))))
        for name, values in block.values.items():
            self._stores[name].add(values, order, starts)

    def read(self, shard: int) -> dict[str, Values]:
        """Return all rows of one shard, by column."""
        return {name: store.read(shard) for name, store in self._stores.items()}


class _AppendedFile:
    """What is written goes to the end; what is read lies anywhere."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = 0

    def append(self, pieces: Iterable[bytes | memoryview]) -> int:
        """Write ``pieces`` one after the other, and return where the first begins."""
        start = self._end
        self._file.seek(start)
        self._file.writelines(pieces)
        self._end = self._file.tell()
        return start

    def read(self, start: int, size_bytes: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size_bytes)

    def close(self) -> None:
        self._file.close()


class _FixedStore:
    """Rows of equal size."""

    def __init__(self, file: _AppendedFile, row_bytes: int) -> None:
        self._file = file
        self._row_bytes = row_bytes
        self._runs: list[tuple[int, NDArray[np.int64]]] = []

    def add(self, values: Values, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        rows = np.asarray(values)[order]
        self._runs.append((self._file.append([rows.data]), starts))

    def read(self, shard: int) -> ByteRows:
        data = b"".join(self.run(block, shard) for block in range(len(self._runs)))
        return np.frombuffer(data, np.uint8).reshape(-1, self._row_bytes)

    def run(self, block: int, shard: int) -> bytes:
        """Return the bytes of a shard's rows in one block."""
        offset, starts = self._runs[block]
        begin, end = int(starts[shard]), int(starts[shard + 1])
        return self._file.read(offset + begin * self._row_bytes, (end - begin) * self._row_bytes)


class _TextStore:
    """Strings: their bytes one after the other, and their lengths in a store of equal rows."""

    def __init__(self, file: _AppendedFile) -> None:
        self._file = file
        self._lengths = _FixedStore(file, _LENGTH_BYTES)
        self._runs: list[NDArray[np.int64]] = []

    def add(self, values: Values, order: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        ends = np.concatenate(([0], np.cumsum(lengths[order])))
        self._lengths.add(lengths.view(np.uint8).reshape(-1, _LENGTH_BYTES), order, starts)
        offset = self._file.append(bytes(values[i]) for i in order.tolist())
        self._runs.append(offset + ends[starts])

    def read(self, shard: int) -> list[bytes]:
        return [text for block in range(len(self._runs)) for text in self._run(block, shard)]

    def _run(self, block: int, shard: int) -> Iterator[bytes]:
        begin, end = self._runs[block][shard : shard + 2].tolist()
        data = self._file.read(begin, end - begin)
        at = 0
        for length in np.frombuffer(self._lengths.run(block, shard), np.int64).tolist():
            yield data[at : at + length]
            at += length
