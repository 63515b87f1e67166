"""NumPy ``.npz`` archives, streamed: members are read side by side and never unpickled."""

from __future__ import annotations

import math
import mmap
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from farm_client.data.columns import Block, Column, DataError, as_values, column_of

_COPY_BYTES: Final = 1 << 20
_HEADERS: Final = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class _Member:
    """An array of the archive; ``size_bytes`` are those of its elements."""

    file: str
    column: Column
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


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
        except zipfile.BadZipFile as error:
            raise DataError(f"it is not a NumPy archive: {error}; write it with np.savez") from error
        self.rows = _common_length(self._members)
        self.columns = tuple(member.column for member in self._members)
        self.size_bytes = self.rows * sum(m.column.row_bytes or m.dtype.itemsize for m in self._members)

    def blocks(self, rows: int) -> Iterator[Block]:
        """Read all rows in order, in blocks of at most ``rows``."""
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self._path))
            readers = _readers(stack, archive, self._members)
            for start in range(0, self.rows, rows):
                count = min(rows, self.rows - start)
                yield Block(count, {r.column.name: as_values(r.column, r.read(count), start) for r in readers})


def _describe(archive: zipfile.ZipFile, file: str) -> _Member:
    name = file.removesuffix(".npy")
    with archive.open(file) as stream:
        try:
            shape, is_fortran, dtype = _read_header(stream)
        except Exception as error:
            # NumPy evaluates the header's text, so that nearly anything can come of a damaged one.
            raise DataError(f"array {name!r} is not a NumPy array: {error}; write it with np.savez") from error
        header_bytes = stream.tell()
    if not shape:
        raise DataError(f"array {name!r} is a single number; every array needs one row for each sample")
    if min(shape) < 0:
        raise DataError(f"array {name!r} says that its shape is {list(shape)}: write the archive again")
    column = column_of(name, np.empty((0, *shape[1:]), dtype))
    member = _Member(file, column, shape, dtype, is_fortran and len(shape) > 1)
    stored_bytes = archive.getinfo(file).file_size - header_bytes
    if member.size_bytes != stored_bytes:
        what = f"{list(shape)} of {dtype} are {member.size_bytes} bytes, and it has {stored_bytes}"
        raise DataError(f"array {name!r} is damaged: {what}; write the archive again")
    return member


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"unknown array version {version}")
    return _HEADERS[version](stream)


def _common_length(members: list[_Member]) -> int:
    lengths = {member.column.name: member.shape[0] for member in members}
    if not lengths:
        raise DataError("it holds no array; write it with np.savez(path, x=..., y=...)")
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise DataError(f"its arrays must have equal first dimensions: {found}")
    return next(iter(lengths.values()))


class _Rows(Protocol):
    """Reads a member front to back, some rows at a time."""

    column: Column

    def read(self, rows: int) -> NDArray[Any]:
        """Return the next rows: [rows, ...]."""


class _RowStream:
    """A member whose rows are one after the other."""

    def __init__(self, stream: IO[bytes], member: _Member) -> None:
        self.column = member.column
        self._stream = stream
        self._dtype = member.dtype
        self._row_shape = member.shape[1:]
        self._row_bytes = math.prod(self._row_shape) * member.dtype.itemsize
        _read_header(stream)

    def read(self, rows: int) -> NDArray[Any]:
        data = self._stream.read(rows * self._row_bytes)
        if len(data) != rows * self._row_bytes:
            raise DataError(f"array {self.column.name!r} is cut short: write the archive again")
        return np.frombuffer(data, self._dtype).reshape(rows, *self._row_shape)


class _ColumnMajorRows:
    """A Fortran-ordered member, unpacked: its rows are not consecutive."""

    def __init__(self, unpacked: mmap.mmap, offset_bytes: int, member: _Member) -> None:
        self.column = member.column
        self._rows = np.ndarray(member.shape, member.dtype, unpacked, offset_bytes, order="F")
        self._next = 0

    def read(self, rows: int) -> NDArray[Any]:
        start, self._next = self._next, self._next + rows
        return np.ascontiguousarray(self._rows[start : self._next])


def _readers(stack: ExitStack, archive: zipfile.ZipFile, members: Sequence[_Member]) -> list[_Rows]:
    fortran = [member for member in members if member.is_fortran]
    unpacked = _unpacked(stack, archive, fortran) if fortran else {}
    return [
        unpacked[member.file]
        if member.is_fortran
        else _RowStream(stack.enter_context(archive.open(member.file)), member)
        for member in members
    ]


def _unpacked(stack: ExitStack, archive: zipfile.ZipFile, members: Sequence[_Member]) -> dict[str, _ColumnMajorRows]:
    """Unpack members to one file: each map takes a descriptor, and there may be more members than descriptors."""
    file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(prefix="aifarm-npz-"))  # noqa: SIM115
    offsets = {}
    for member in members:
        offsets[member.file] = file.tell()
        with archive.open(member.file) as stream:
            _read_header(stream)
            while chunk := stream.read(_COPY_BYTES):
                file.write(chunk)
    file.flush()
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return {member.file: _ColumnMajorRows(mapped, offsets[member.file], member) for member in members}
