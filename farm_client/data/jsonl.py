"""JSON Lines: one object a line, every line with the same fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import Block, Column, DataError, Values, as_values, column_of, text_values


class JsonLines:
    """Fields as columns: whole numbers int64, other numbers float32, booleans, strings, and lists of equal size.

    The file is read once at the start, to count its rows and to learn whether a field's numbers are all whole.
    """

    def __init__(self, path: Path) -> None:
        """Raises: DataError naming the line that is no object or has other fields than the first."""
        self._path = path
        self.notes: tuple[str, ...] = ()
        self.rows = 0
        self.size_bytes = path.stat().st_size
        kinds: dict[str, Column] = {}
        for number, record in self._records():
            self.rows += 1
            for column in (_column(name, value, number) for name, value in record.items()):
                kinds[column.name] = _merged(kinds.get(column.name, column), column, number)
            if len(kinds) != len(record):
                missing = ", ".join(sorted(kinds.keys() ^ record.keys()))
                raise DataError(f"{path.name} line {number}: every line needs the same fields; differing: {missing}")
        self.columns = tuple(kinds.values())

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        records = (record for _, record in self._records())
        while batch := list(islice(records, rows)):
            yield Block(len(batch), {c.name: _values(c, [record[c.name] for record in batch]) for c in self.columns})

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, self._parsed(line, number)

    def _parsed(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{self._path.name} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict) or not record:
            raise DataError(f"{self._path.name} line {number} must be an object with at least one field")
        return record


def _column(name: str, value: Any, line: int) -> Column:
    if isinstance(value, str):
        return Column(name, "TEXT")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(
            f"line {line}: field {name!r} has lists of several lengths; a tensor needs equal ones"
        ) from error
    if array.dtype.kind not in "ifb":
        raise DataError(f"line {line}: field {name!r} must be a number, a boolean, a string or a list of numbers")
    return column_of(name, _narrowed(array)[None])


def _merged(known: Column, found: Column, line: int) -> Column:
    """Return the column that holds both: a field with one fractional number is float32 throughout."""
    if known == found:
        return known
    if known.shape == found.shape and {known.dtype, found.dtype} == {"I64", "F32"}:
        return Column(known.name, "F32", known.shape)
    raise DataError(
        f"line {line}: field {known.name!r} is {found.dtype} {list(found.shape)} here "
        f"and {known.dtype} {list(known.shape)} before; all rows need one type and size"
    )


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _values(column: Column, values: list[Any]) -> Values:
    if column.is_text:
        return text_values(values)
    dtype = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}[column.dtype]
    return as_values(column, np.asarray(values, dtype=dtype))
