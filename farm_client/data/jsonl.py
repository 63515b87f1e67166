"""JSON Lines: one object a line, every line with the same fields."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from farm_client.data.columns import (
    LARGEST_INT64,
    Block,
    Column,
    DataError,
    Values,
    as_values,
    column_of,
    is_text,
    text_values,
)

MAX_LINE_CHARS: Final = 64 << 20
"""A longer line is taken for a file of another form: it would have to be held in memory many times over."""
_OTHER_ENCODINGS: Final = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""By the marks that files begin with; the first that fits is meant."""
_FIRST_ESCAPE: Final = "\udc80"
_LAST_ESCAPE: Final = "\udcff"
"""What Python reads bytes as that are not UTF-8 ("surrogateescape")."""
_SHOWN_DIGITS: Final = 24
_DTYPES: Final = {"F32": np.float32, "I64": np.int64, "BOOL": np.bool_}


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
                raise DataError(f"line {number}: every line needs the same fields; differing: {missing}")
        self.columns = tuple(kinds.values())

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        records = (record for _, record in self._records())
        while batch := list(islice(records, rows)):
            yield Block(len(batch), {c.name: _values(c, [record[c.name] for record in batch]) for c in self.columns})

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        _refuse_other_encodings(self._path)
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in _lines(file):
                if line.strip():
                    yield number, _parsed(line, number)


def _refuse_other_encodings(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    for mark, encoding in _OTHER_ENCODINGS.items():
        if head.startswith(mark):
            raise DataError(f"it is {encoding}: save it as UTF-8")


def _lines(file: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines. Raises: DataError for a line without an end, or that is not UTF-8."""
    for number in count(1):
        line = file.readline(MAX_LINE_CHARS + 1)
        if not line:
            return
        if len(line) > MAX_LINE_CHARS:
            raise DataError(
                f"line {number} is longer than {MAX_LINE_CHARS >> 20} Mi characters: write one object a line"
            )
        if not is_text(line):
            at, char = next((at, c) for at, c in enumerate(line) if _FIRST_ESCAPE <= c <= _LAST_ESCAPE)
            byte = ord(char) & 0xFF
            raise DataError(f"line {number} is not UTF-8 (byte 0x{byte:02x} at character {at + 1}): save it as UTF-8")
        yield number, line


def _parsed(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise DataError(
            f"line {number} is nested too deeply: a field is a number, a string, or a list of numbers"
        ) from error
    except ValueError as error:
        hint = "; it has NUL characters: is it UTF-16? Save it as UTF-8" if "\0" in line else ""
        raise DataError(f"line {number} is not JSON: {error}{hint}") from error
    if not isinstance(record, dict) or not record:
        raise DataError(f"line {number} must be an object with at least one field")
    return record


def _column(name: str, value: Any, line: int) -> Column:
    place = f"line {line}: field {name!r}"
    if isinstance(value, str):
        if not is_text(value):
            raise DataError(f"{place} has a lone surrogate, which is no Unicode text: write it anew")
        return Column(name, "TEXT")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{place} has lists of several lengths: pad them to one length") from error
    _refuse_lost_numbers(place, array, value)
    if array.dtype.kind not in "ifb":
        raise DataError(f"{place} must be a number, a boolean, a string or a list of numbers")
    return column_of(name, _narrowed(array)[None])


def _refuse_lost_numbers(place: str, array: NDArray[Any], value: Any) -> None:
    """Refuse integers that no int64 and numbers that no float32 holds: they would become others without a word."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            is_lost = np.isfinite(array) & ~np.isfinite(array.astype(np.float32))
        if is_lost.any():
            raise DataError(f"{place} has {array[is_lost].flat[0]:g}, beyond float32: scale it, or save it as .npz")
    # NumPy makes floats, or Python objects, of lists with integers beyond int64.
    is_suspect = array.dtype.kind in "uO" or (array.dtype.kind == "f" and bool((np.abs(array) > LARGEST_INT64).any()))
    if is_suspect and (
        lost := next((n for n in _integers(value) if not -LARGEST_INT64 - 1 <= n <= LARGEST_INT64), None)
    ):
        raise DataError(f"{place} has {_shown(lost)}, beyond int64: write it as text, or as a number with a fraction")


def _shown(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= _SHOWN_DIGITS else f"{digits[:_SHOWN_DIGITS]}…"


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, int):
        yield value


def _merged(known: Column, found: Column, line: int) -> Column:
    """Return the column that holds both: a field with one fractional number is float32 throughout."""
    if known == found:
        return known
    if known.shape == found.shape and {known.dtype, found.dtype} == {"I64", "F32"}:
        return Column(known.name, "F32", known.shape)
    sizes_only = {known.dtype, found.dtype} in ({known.dtype}, {"I64", "F32"})
    remedy = "pad the lists to one length" if sizes_only else "all rows need one type and size"
    raise DataError(
        f"line {line}: field {known.name!r} is {found.dtype} {list(found.shape)} here "
        f"and {known.dtype} {list(known.shape)} before; {remedy}"
    )


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _values(column: Column, values: list[Any]) -> Values:
    if column.is_text:
        return text_values(column, values)
    return as_values(column, np.asarray(values, dtype=_DTYPES[column.dtype]))
