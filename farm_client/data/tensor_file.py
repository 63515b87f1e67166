"""A ``.safetensors`` file as a data set: memory-mapped, each tensor a column, its first dimension the rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from farm_client.data.columns import Block, Column, DataError, byte_rows
from protocol.errors import MalformedTensors
from protocol.tensors import MAX_HEADER_BYTES, Header, read_header


class TensorFile:
    """Tensors of equal first dimension as columns; every dtype that may cross the wire, bfloat16 among them."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError if it is no such file or the tensors' lengths differ."""
        self._path = path
        self.notes: tuple[str, ...] = ()
        self._header = _header_of(path)
        lengths = {name: t.shape[0] if t.shape else 0 for name, t in self._header.tensors.items()}
        if not lengths or len(set(lengths.values())) > 1 or not all(t.shape for t in self._header.tensors.values()):
            found = ", ".join(f"{name} has {length}" for name, length in lengths.items()) or "there is none"
            raise DataError(f"the tensors must have equal first dimensions: {found}")
        self.rows = next(iter(lengths.values()))
        self.columns = tuple(Column(name, t.dtype, t.shape[1:]) for name, t in self._header.tensors.items())
        self.size_bytes = self.rows * sum(column.row_bytes for column in self.columns)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        data = np.memmap(self._path, np.uint8, "r")
        views = {
            column.name: byte_rows(data[tensor.start : tensor.stop], column)
            for column, tensor in zip(self.columns, self._header.tensors.values(), strict=True)
        }
        for start in range(0, self.rows, rows):
            count = min(rows, self.rows - start)
            yield Block(count, {name: np.array(view[start : start + count]) for name, view in views.items()})


def _header_of(path: Path) -> Header:
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little") if len(head) == 8 else 0
        head += file.read(min(length, MAX_HEADER_BYTES))
    try:
        return read_header(head, path.stat().st_size)
    except MalformedTensors as error:
        raise DataError(f"it cannot be used as data: {error.message}") from error
