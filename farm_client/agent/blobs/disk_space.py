"""How much of a disk an agent may fill: what is free, less a reserve for the machine's own programs."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from farm_client.agent.errors import DiskFull, HomeGone
from farm_client.transfer.tally import size_in_words

MAX_RESERVE_BYTES: Final = 256 * 1024**2
_RESERVED_SHARE: Final = 0.02
"""Of a small disk this share is kept free, not all of ``MAX_RESERVE_BYTES``."""
_BLOCK_BYTES: Final = 512
"""What ``st_blocks`` counts in, on every file system."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskBudget:
    """The disk of a folder, and what last found no room on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._short_of_bytes = 0

    def room_bytes(self) -> int:
        """Return how many bytes may be added; negative where even of the reserve some is used.

        Raises: HomeGone if the folder is not there.
        """
        try:
            disk = shutil.disk_usage(self._folder)
        except OSError as error:
            why = f"the folder {self._folder} is gone ({error.strerror}); the agent waits until it is back"
            raise HomeGone(why) from error
        return disk.free - int(min(MAX_RESERVE_BYTES, disk.total * _RESERVED_SHARE))

    def full(self, size_bytes: int) -> DiskFull:
        """Make the error of what found no room, and remember its size."""
        self._short_of_bytes = max(1, size_bytes)
        return DiskFull(self._sentence)

    def lack(self, room_bytes: int) -> str | None:
        """Return what is lacking while what last found no room would find none; ``room_bytes``: what there is now."""
        if self._short_of_bytes <= room_bytes:
            self._short_of_bytes = 0
        return self._sentence if self._short_of_bytes else None

    @property
    def _sentence(self) -> str:
        return (
            f"the disk of {self._folder} has no room for {size_in_words(self._short_of_bytes)} beside its reserve;"
            " free some space, or choose another folder with --home"
        )


def is_full(error: BaseException) -> bool:
    """Return whether a write failed because the disk, or its owner's quota, has no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def stored_bytes(path: Path) -> int:
    """Return what a file, which may have holes, takes of the disk; 0 if there is none."""
    try:
        return path.stat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0
