"""A spooled update, mapped tensor by tensor while it is folded: reading it takes no copy.

A mapped file that is cut short, or whose disk fails, ends a process with SIGBUS when it is touched. So each map is
populated first, by a call that returns such trouble as an error; where the system has no such call nothing is mapped.
Source: madvise(2), MADV_POPULATE_READ (Linux 5.14).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import cache
from typing import Final

import numpy as np

from farm_server.tensors.tensor_reader import FileReader
from protocol.errors import MalformedTensors
from storage.errors import disk_errors

LARGEST_MAP_BYTES: Final = 64 * 1024 * 1024
"""Mapped pages count as the server's memory: larger tensors are read piece by piece."""
SMALLEST_MAP_BYTES: Final = 256 * 1024
"""Below this a map costs more than a copy."""
_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ, which Python's mmap does not name."""


class MappedFileReader(FileReader):
    """Like its base, and a ``protocol.codecs.MappedReader`` where that is possible and pays."""

    def view(self, name: str) -> memoryview | None:
        """Return the bytes of a stored tensor as they lie in the page cache; None where they should be read.

        Raises: Unavailable if the disk fails; MalformedTensors if the file has become shorter.
        """
        entry = self.header.tensors[name]
        if not _CAN_POPULATE or not SMALLEST_MAP_BYTES <= entry.stop - entry.start <= LARGEST_MAP_BYTES:
            return None
        first = entry.start - entry.start % mmap.ALLOCATIONGRANULARITY
        self._check_whole()
        with disk_errors(self._path.parent):
            try:
                mapped = mmap.mmap(self._file, entry.stop - first, prot=mmap.PROT_READ, offset=first)
            except ValueError as error:  # it was cut a moment ago
                raise MalformedTensors(f"{self._path} is cut: {error}") from error
            _populate(mapped)
        return memoryview(mapped)[entry.start - first :]


def _populate(mapped: mmap.mmap) -> None:
    """Have all pages in memory. Raises: OSError.

    By ctypes, which lets other threads run meanwhile, the event loop's above all: the disk may have to be read. The
    method of Python's own does not.
    """
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    if _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), _POPULATE_READ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _can_populate() -> bool:
    if sys.platform != "linux":
        return False
    try:
        _populate(mmap.mmap(-1, mmap.PAGESIZE))
    except OSError:
        return False
    return True


_CAN_POPULATE: Final = _can_populate()
