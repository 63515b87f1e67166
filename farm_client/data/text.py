"""Text as rows of a fixed number of bytes, for character-level models: one column ``text`` of uint8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from farm_client.data.columns import Block, Column, DataError, byte_rows

DEFAULT_ROW_BYTES: Final = 256


class TextFile:
    """Rows of ``row_bytes`` consecutive bytes; the tail that is shorter than a row is dropped, with a note."""

    def __init__(self, path: Path, row_bytes: int = DEFAULT_ROW_BYTES) -> None:
        """Raises: DataError if the file is shorter than one row."""
        if row_bytes < 1:
            raise DataError(f"a text row of {row_bytes} bytes is not possible; give at least 1")
        total = path.stat().st_size
        self._path = path
        self.columns = (Column("text", "U8", (row_bytes,)),)
        self.rows, tail = divmod(total, row_bytes)
        self.size_bytes = self.rows * row_bytes
        if total and not self.rows:
            raise DataError(f"it has {total} bytes, less than a row of {row_bytes}: give a smaller row_bytes")
        self.notes = (f"the last {tail} bytes are shorter than a row and were dropped",) if tail else ()

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        column = self.columns[0]
        with self._path.open("rb") as file:
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                yield Block(count, {"text": byte_rows(file.read(count * column.row_bytes), column)})
