"""The list of ranges received, in a file beside an unfinished upload: a line ``0-1048576`` (half-open) for each write.

A range is put down after its bytes were written, so that a process killed at any moment claims nothing that it has not.
A line without its end does not count; the next one is written over it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from protocol.ranges import ByteRange, ByteRanges


class ReceivedList:
    """Where the next line of the file goes. Methods may be called from any thread; OSError if the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size_bytes = 0
        self._appending = threading.Lock()

    def create(self) -> None:
        """Make a file that names no byte."""
        self.path.write_bytes(b"")

    def load(self) -> ByteRanges:
        """Return what a former process put down. Raises: ValueError if the file is no such list."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        self._size_bytes = sum(len(line) + 1 for line in lines)
        return ByteRanges(pair for line in lines for pair in ByteRanges.parse(line.decode("ascii")))

    def append(self, handle: int, written: ByteRange) -> None:
        """Put down one range more; ``handle`` is the open file."""
        line = f"{written.start}-{written.end}\n".encode("ascii")
        with self._appending:
            done = 0
            while done < len(line):
                done += os.pwrite(handle, line[done:], self._size_bytes + done)
            self._size_bytes += len(line)
