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
LARGEST_INT64: Final = 2**63 - 1


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
    column = Column(name, tag, tuple(array.shape[1:]))
    _refuse_empty(column)
    return column


def stored_dtype(name: str, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype a column is stored in; torch has few unsigned types, so those become wider.

    Raises: DataError for Python objects, dates and other dtypes that have no tensor form.
    """
    if dtype.kind not in "fiub":
        what = "Python objects, which would need pickle" if dtype.kind == "O" else str(dtype)
        raise DataError(f"column {name!r} holds {what}: save it as numbers, booleans or strings")
    code = dtype.str[1:]
    return np.dtype("<" + _WIDER.get(code, code))


def as_values(column: Column, array: NDArray[Any], first_row: int = 0) -> Values:
    """Return rows ``array`` [rows, ...] in the form a block holds them; ``first_row`` is the first one's number.

    Raises: DataError naming the row that is no text, or has an integer that int64 cannot hold.
    """
    if column.is_text:
        return text_values(column, array.tolist(), first_row)
    _refuse_wrapping(column, array, first_row)
    plain = np.ascontiguousarray(array, dtype=stored_dtype(column.name, array.dtype))
    return byte_rows(plain, column)


def _refuse_wrapping(column: Column, array: NDArray[Any], first_row: int) -> None:
    """Refuse what the signed type that it is stored in would turn into a negative number."""
    if array.dtype.kind != "u" or array.dtype.itemsize < np.dtype(np.int64).itemsize:
        return
    beyond = (array > LARGEST_INT64).reshape(len(array), -1).any(axis=1)
    if beyond.any():
        row = int(beyond.argmax())
        raise DataError(
            f"column {column.name!r}, row {first_row + row}: {array[row].max()} is larger than an int64 holds, "
            "and torch has nothing larger: save it as float64, or in two columns"
        )


def byte_rows(data: NDArray[Any] | bytes | memoryview, column: Column) -> ByteRows:
    """View contiguous data as [rows, row_bytes] bytes.

    Raises: DataError if a row has no bytes.
    """
    _refuse_empty(column)
    flat = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return flat.reshape(-1, column.row_bytes)


def _refuse_empty(column: Column) -> None:
    if column.row_bytes == 0:
        raise DataError(f"column {column.name!r} has empty rows (shape {list(column.shape)}): drop it")


def text_values(column: Column, strings: Sequence[str | bytes], first_row: int = 0) -> list[bytes]:
    """Return strings, or their UTF-8 bytes, in the form a block holds them; ``first_row`` is the first one's number.

    Raises: DataError naming the first row that is no Unicode text.
    """
    try:
        return [utf8(string) for string in strings]
    except UnicodeError:
        row = next(i for i, string in enumerate(strings) if not is_text(string))
        raise DataError(
            f"column {column.name!r}, row {first_row + row}: its text is not Unicode (a lone surrogate, or bytes "
            "that are not UTF-8): save it as UTF-8"
        ) from None


def utf8(text: str | bytes) -> bytes:
    """Return a text's UTF-8 bytes. Raises: UnicodeError if it is none, or has a lone surrogate."""
    if isinstance(text, bytes):
        text.decode()
        return text
    return text.encode()


def is_text(text: str | bytes) -> bool:
    """Return whether a text can be stored as UTF-8."""
    try:
        utf8(text)
    except UnicodeError:
        return False
    return True
