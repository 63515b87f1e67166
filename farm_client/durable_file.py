"""A small file that must be whole after a power cut: the old one or the new one, never half of one or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CLOSED_IN_CHILDREN: Final = getattr(os, "O_CLOEXEC", 0)
"""Windows passes no descriptor on unless it is told to."""


def write_durably(path: Path, text: str) -> None:
    """Write a text as ``write_bytes_durably`` writes bytes."""
    write_bytes_durably(path, text.encode())


def write_bytes_durably(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read: under another name, fsynced, renamed, and the folder fsynced.

    Raises: OSError, and the file is what it was.
    """
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CLOSED_IN_CHILDREN, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is. Windows opens no folders, and keeps its own journal of renames."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _CLOSED_IN_CHILDREN)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
