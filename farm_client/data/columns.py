"""A data set's columns, and blocks of its rows as raw bytes: dtype-agnostic, so bfloat16 needs no special case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FarmError
from protocol.tensors import DTYPE_BYTES

_TAGS: Final = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8"}
_WIDER: Final = {"u2": "i4", "u4": "i8", "u8": "i8"}


class DataError(FarmError):
    """The data cannot be used as it is."""

    code: ClassVar[str] = "invalid_data"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of equal-sized rows (``dtype`` is a safetensors name), or of strings (``dtype`` TEXT, no shape)."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the rows are strings."""
        return self.dtype == "TEXT"

    @property
    def row_bytes(self) -> int:
        """Count the bytes of one row; 0 for strings, whose rows differ."""
        return 0 if self.is_text else math.prod(self.shape) * DTYPE_BYTES[self.dtype]


ByteRows = NDArray[np.uint8]
"""The rows of a column as bytes: [rows, row_bytes]."""
Values = ByteRows | list[bytes]
"""A block's part of a column: bytes of equal size, or one UTF-8 string a row."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows, by column name."""

    rows: int
    values: dict[str, Values]


def column_of(name: str, array: NDArray[Any]) -> Column:
    """Return the column for rows ``array`` [rows, ...], as ``as_bytes`` will store it.

    Raises: DataError naming the column if its dtype has no tensor form.
    """
    dtype = array.dtype
    if dtype.kind in "US":
        if array.ndim != 1:
            raise DataError(f"column {name!r} holds strings of shape {list(array.shape[1:])} a row; one a row works")
        return Column(name, "TEXT")
    tag = "BOOL" if dtype.kind == "b" else _TAGS.get(stored_dtype(name, dtype).str[1:])
    if tag is None:
        raise DataError(f"column {name!r} is {dtype}: save it as numbers, booleans or strings")
    return Column(name, tag, tuple(array.shape[1:]))


def stored_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype a column is stored in; torch has few unsigned types, so those become wider.

    Raises: DataError for Python objects, dates and other dtypes that have no tensor form.
    """
    if dtype.kind not in "fiub":
        what = "Python objects, which would need pickle" if dtype.kind == "O" else str(dtype)
        raise DataError(f"column {name!r} holds {what}: save it as numbers, booleans or strings")
    code = dtype.str[1:]
    return np.dtype("<" + _WIDER.get(code, code))


def as_values(column: Column, array: NDArray[Any]) -> Values:
    """Return rows ``array`` [rows, ...] in the form a block holds them."""
    if column.is_text:
        return [item if isinstance(item, bytes) else str(item).encode() for item in array.tolist()]
    plain = np.ascontiguousarray(array, dtype=stored_dtype(column.name, array.dtype))
    return byte_rows(plain, column)


def byte_rows(data: NDArray[Any] | bytes | memoryview, column: Column) -> ByteRows:
    """View contiguous data as [rows, row_bytes] bytes.

    Raises: DataError if a row has no bytes.
    """
    if column.row_bytes == 0:
        raise DataError(f"column {column.name!r} has empty rows (shape {list(column.shape)}): drop it")
    flat = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return flat.reshape(-1, column.row_bytes)


def text_values(strings: Sequence[str]) -> list[bytes]:
    """Return strings in the form a block holds them."""
    return [string.encode() for string in strings]
