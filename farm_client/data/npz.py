"""NumPy ``.npz`` archives, streamed: members are read side by side and never unpickled."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from farm_client.data.columns import Block, Column, DataError, as_values, column_of

_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class _Member:
    file: str
    column: Column
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool


class NpzArrays:
    """The arrays of an archive as columns; their first dimension is the rows."""

    def __init__(self, path: Path) -> None:
        """Raises: DataError if it is no archive, holds Python objects, or the arrays' lengths differ."""
        self._path = path
        self.notes: tuple[str, ...] = ()
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                self._members = [_describe(archive, name) for name in names]
        except (zipfile.BadZipFile, ValueError) as error:
            raise DataError(f"{path.name} is not a NumPy archive: {error}; write it with np.savez") from error
        self.rows = _common_length(path, self._members)
        self.columns = tuple(member.column for member in self._members)
        self.size_bytes = self.rows * sum(m.column.row_bytes or m.dtype.itemsize for m in self._members)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            readers = [_reader(stack, archive, member) for member in self._members]
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                yield Block(count, {r.column.name: as_values(r.column, r.read(count)) for r in readers})


def _describe(archive: zipfile.ZipFile, file: str) -> _Member:
    name = file.removesuffix(".npy")
    with archive.open(file) as stream:
        shape, is_fortran, dtype = _read_header(stream)
    if not shape:
        raise DataError(f"array {name!r} is a single number; every array needs one row for each sample")
    column = column_of(name, np.empty((0, *shape[1:]), dtype))
    return _Member(file, column, shape, dtype, is_fortran and len(shape) > 1)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy.read_array_header_2_0(stream)
    raise ValueError(f"unknown array version {version}")


def _common_length(path: Path, members: list[_Member]) -> int:
    lengths = {member.column.name: member.shape[0] for member in members}
    if not lengths:
        raise DataError(f"{path.name} holds no array; write it with np.savez(path, x=..., y=...)")
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"the arrays of {path.name} must have equal first dimensions: {found}")
    return next(iter(lengths.values()))


class _RowStream:
    """Reads a member front to back, a few rows at a time."""

    def __init__(self, stream: IO[bytes], member: _Member) -> None:
        self.column = member.column
        self._stream = stream
        self._dtype = member.dtype
        self._row_shape = member.shape[1:]
        self._row_bytes = int(np.prod(self._row_shape, dtype=np.int64)) * member.dtype.itemsize
        _read_header(stream)

    def read(self, rows: int) -> NDArray[Any]:
        data = self._stream.read(rows * self._row_bytes)
        if len(data) != rows * self._row_bytes:
            raise DataError(f"array {self.column.name!r} is cut short: write the archive again")
        return np.frombuffer(data, self._dtype).reshape(rows, *self._row_shape)


class _ColumnMajorRows:
    """Rows of a Fortran-ordered member: its rows are not consecutive, so it is unpacked to disk and memory-mapped."""

    def __init__(self, stream: IO[bytes], member: _Member, unpacked: Path) -> None:
        self.column = member.column
        _read_header(stream)
        with unpacked.open("wb") as file:
            while chunk := stream.read(_COPY_BYTES):
                file.write(chunk)
        self._rows = np.memmap(unpacked, member.dtype, "r", shape=member.shape, order="F")
        self._next = 0

    def read(self, rows: int) -> NDArray[Any]:
        start, self._next = self._next, self._next + rows
        return np.ascontiguousarray(self._rows[start : self._next])


def _reader(stack: ExitStack, archive: zipfile.ZipFile, member: _Member) -> _RowStream | _ColumnMajorRows:
    stream = stack.enter_context(archive.open(member.file))
    if not member.is_fortran:
        return _RowStream(stream, member)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="aifarm-npz-"))
    return _ColumnMajorRows(stream, member, Path(folder) / "array")
