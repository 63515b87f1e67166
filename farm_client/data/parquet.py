"""Parquet files through pyarrow, batch by batch: numbers, booleans, strings, and lists of equal length."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, Column, DataError, Values, as_values, column_of, text_values

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
        named = () if first is None else zip(first.schema.names, first.columns, strict=True)
        self.columns = tuple(_column(name, array) for name, array in named)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        start = 0
        for batch in _open(self._path).iter_batches(batch_size=rows):
            yield Block(batch.num_rows, {c.name: _values(c, batch[c.name], start) for c in self.columns})
            start += batch.num_rows


def _open(path: Path) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        arrow = importlib.import_module("pyarrow")
    except ModuleNotFoundError as error:
        raise DataError("Parquet files need pyarrow: pip install 'aifarm[parquet]'") from error
    try:
        return parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise DataError(f"it is not a Parquet file: {error}") from error


def _is_text(array: Any) -> bool:
    return str(array.type).removeprefix("dictionary<values=").partition(",")[0] in _TEXT_TYPES


def _column(name: str, array: Any) -> Column:
    return Column(name, "TEXT") if _is_text(array) else column_of(name, _numbers(name, array, 0))


def _values(column: Column, array: Any, first_row: int) -> Values:
    if column.is_text:
        _refuse_nulls(column.name, array, first_row)
        return text_values(column, _texts(array), first_row)
    numbers = _numbers(column.name, array, first_row)
    if tuple(numbers.shape[1:]) != column.shape:
        raise DataError(
            f"column {column.name!r} has rows of {list(numbers.shape[1:])} from row {first_row} on "
            f"and of {list(column.shape)} before: pad its lists to one length"
        )
    return as_values(column, numbers, first_row)


def _texts(array: Any) -> list[bytes]:
    """Return a column's strings as the bytes that the file has; nobody has looked whether they are UTF-8."""
    arrow = importlib.import_module("pyarrow")
    if str(array.type).startswith("dictionary"):
        array = array.dictionary_decode()
    texts: list[bytes] = array.cast(arrow.large_binary()).to_pylist()
    return texts


def _numbers(name: str, array: Any, first_row: int) -> NDArray[Any]:
    """Return a column as an array [rows, ...]; nested lists become further dimensions."""
    _refuse_nulls(name, array, first_row)
    rows, sizes = len(array), []
    while "list" in str(array.type).partition("<")[0]:
        inner = array.flatten()
        size, rest = divmod(len(inner), max(1, len(array)))
        lengths = set(array.value_lengths().to_pylist()) if hasattr(array, "value_lengths") else {size}
        if rest or lengths - {size}:
            raise DataError(f"column {name!r} has lists of several lengths: pad them to one length")
        sizes.append(size)
        array = inner
        _refuse_nulls(name, array, first_row)
    flat = np.asarray(array.to_numpy(zero_copy_only=False))
    if flat.dtype.kind == "O":
        raise DataError(f"column {name!r} is {array.type}: save it as numbers, booleans or strings")
    return flat.reshape(rows, *sizes)


def _refuse_nulls(name: str, array: Any, first_row: int) -> None:
    if array.null_count:
        where = f" from row {first_row} on" if first_row else ""
        raise DataError(f"column {name!r} has missing values{where}; fill or drop them")
