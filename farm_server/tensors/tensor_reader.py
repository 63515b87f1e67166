"""A tensor file on the disk, read piece by piece into memory that the caller gave.

The file is not mapped: one that is cut short meanwhile would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from protocol.errors import MalformedTensors, NotFound
from protocol.tensors import HEADER_LENGTH_BYTES, MAX_HEADER_BYTES, Header, read_header
from storage.errors import disk_errors


class FileReader:
    """A ``protocol.codecs.Reader`` by pread: any number of threads may read at once.

    ``forget``: on closing, the page cache is told that nobody reads this file again (a spooled update is folded once;
    the memory is better used for what comes next).
    """

    def __init__(self, path: Path, *, forget: bool = False) -> None:
        """Open the file and check its header.

        Raises: NotFound if it is gone; MalformedTensors as ``read_header`` does; Unavailable if the disk fails.
        """
        self._path = path
        self._forget = forget
        with disk_errors(path.parent):
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise NotFound(f"{path} is gone; upload it again") from error
        try:
            self._lead, self.header = self._read_header()
        except BaseException:
            os.close(self._file)
            raise
        _advise(self._file, "POSIX_FADV_SEQUENTIAL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lead(self) -> bytes:
        """The file's bytes before its tensors."""
        return self._lead

    def read_into(self, name: str, start_byte: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with a stored tensor's bytes from ``start_byte`` on.

        Raises: MalformedTensors if the file has become shorter; Unavailable if the disk fails.
        """
        entry = self.header.tensors[name]
        at = entry.start + start_byte
        if at + buffer.nbytes > entry.stop:
            raise MalformedTensors(f"tensor {name!r} of {self._path} ends before byte {start_byte + buffer.nbytes}")
        self._fill(at, buffer)

    def close(self) -> None:
        """Close the file."""
        if self._forget:
            _advise(self._file, "POSIX_FADV_DONTNEED")
        os.close(self._file)

    def _check_whole(self) -> None:
        """Raise MalformedTensors if the file has become shorter."""
        if os.fstat(self._file).st_size < self.header.total_bytes:
            raise MalformedTensors(f"{self._path} is cut: it had {self.header.total_bytes} bytes")

    def _read_header(self) -> tuple[bytes, Header]:
        total_bytes = os.fstat(self._file).st_size
        lead = bytearray(min(HEADER_LENGTH_BYTES, total_bytes))
        self._fill(0, memoryview(lead))
        length = int.from_bytes(lead, "little")
        if length > MAX_HEADER_BYTES:
            raise MalformedTensors(f"the tensor file's header claims {length} bytes; the limit is {MAX_HEADER_BYTES}")
        text = bytearray(min(length, total_bytes - len(lead)))
        self._fill(len(lead), memoryview(text))
        head = bytes(lead + text)
        return head, read_header(head, total_bytes)

    def _fill(self, at: int, buffer: memoryview) -> None:
        rest = buffer
        with disk_errors(self._path.parent):
            while rest.nbytes:
                count = os.preadv(self._file, [rest], at)
                if not count:
                    raise MalformedTensors(f"{self._path} is cut: it ends at byte {at}")
                at += count
                rest = rest[count:]


def header_of_file(path: Path) -> Header:
    """Read a tensor file's header without its data. Raises: NotFound, MalformedTensors, Unavailable."""
    with FileReader(path) as reader:
        return reader.header


def _advise(file: int, advice: str) -> None:
    """Give a hint where the operating system takes one (macOS has none)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, getattr(os, advice))
