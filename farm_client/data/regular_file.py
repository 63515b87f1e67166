"""Which paths may be read as data: regular files only. A pipe or a device never ends, or blocks for ever."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from farm_client.data.columns import DataError

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(path: Path) -> str | None:
    """Return what a path leads to, links followed: None for a regular file, else such as ``a named pipe``.

    Raises: DataError if there is nothing, or it may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {path}; check the path given with --data") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"{path} cannot be read: {reason}") from error
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no file")


def require_regular(path: Path) -> None:
    """Check that a path leads to a regular file. Raises: DataError saying what it is instead."""
    if kind := kind_of(path):
        raise DataError(f"{path} is {kind}, not a regular file: give a file that can be read twice, or a copy of it")
