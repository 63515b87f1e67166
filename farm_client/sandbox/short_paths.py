"""Names of files that are short enough for the address of a Unix socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """Give a path to the same file that is short enough for a Unix socket, which takes 108 bytes.

    Raises: OSError if its folder cannot be opened.
    """
    folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{Path(path).name}"
    finally:
        os.close(folder)
