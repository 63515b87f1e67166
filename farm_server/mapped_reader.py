"""A spooled update, mapped tensor by tensor while it is folded: reading it takes no copy.

A mapped file that is cut short, or whose disk fails, ends a process with SIGBUS when it is touched. So each map is
populated first, by a call that returns such trouble as an error; where the system has no such call nothing is mapped.
Source: madvise(2), MADV_POPULATE_READ (Linux 5.14).
"""

from __future__ import annotations

import mmap
from typing import Final

from farm_server.tensor_reader import FileReader
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
            mapped.madvise(_POPULATE_READ)
        return memoryview(mapped)[entry.start - first :]


def _can_populate() -> bool:
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as probe:
            probe.madvise(_POPULATE_READ)
    except (AttributeError, OSError, ValueError):
        return False
    return True


_CAN_POPULATE: Final = _can_populate()
