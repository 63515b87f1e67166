"""Parquet files through pyarrow, batch by batch: numbers, booleans, strings, and lists of equal length."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, Column, DataError, Values, as_values, byte_rows, column_of, text_values

_TEXT_TYPES: Final = ("string", "large_string", "string_view")


class ParquetTable:
    """A Parquet file's columns. The row shape of a list column is that of its first row."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError if pyarrow is not installed, or the file or a column cannot be used."""
        self._path = path
        self.notes: tuple[str, ...] = ()
        file = _open(path)
        self.rows: int = file.metadata.num_rows
        self.size_bytes = sum(
            file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)
        )
        first = next(file.iter_batches(batch_size=1), None) if self.rows else None
        self.columns = () if first is None else tuple(_column(name, first[name]) for name in first.schema.names)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        for batch in _open(self._path).iter_batches(batch_size=rows):
            yield Block(batch.num_rows, {c.name: _values(c, batch[c.name]) for c in self.columns})


def _open(path: Path) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        arrow = importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise DataError("Parquet files need pyarrow: pip install 'aifarm[parquet]'") from error
    try:
        return parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{path.name} is not a Parquet file: {error}") from error


def _is_text(array: Any) -> bool:
    return str(array.type).removeprefix("dictionary<values=").partition(",")[0] in _TEXT_TYPES


def _column(name: str, array: Any) -> Column:
    return Column(name, "TEXT") if _is_text(array) else column_of(name, _numbers(name, array))


def _values(column: Column, array: Any) -> Values:
    if column.is_text:
        _refuse_nulls(column.name, array)
        return text_values(array.to_pylist())
    numbers = _numbers(column.name, array)
    if tuple(numbers.shape[1:]) != column.shape:
        raise DataError(f"column {column.name!r} has rows of several sizes; its lists must have equal lengths")
    values = as_values(column, numbers)
    return values if isinstance(values, list) else byte_rows(values, column)


def _numbers(name: str, array: Any) -> NDArray[Any]:
    """Return a column as an array [rows, ...]; nested lists become further dimensions."""
    _refuse_nulls(name, array)
    rows, sizes = len(array), []
    while "list" in str(array.type).partition("<")[0]:
        inner = array.flatten()
        size, rest = divmod(len(inner), max(1, len(array)))
        lengths = set(array.value_lengths().to_pylist()) if hasattr(array, "value_lengths") else {size}
        if rest or lengths - {size}:
            raise DataError(f"column {name!r} has lists of several lengths; a tensor needs equal lengths")
        sizes.append(size)
        array = inner
        _refuse_nulls(name, array)
    flat = array.to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(rows, *sizes)


def _refuse_nulls(name: str, array: Any) -> None:
    if array.null_count:
        raise DataError(f"column {name!r} has missing values; fill or drop them")
