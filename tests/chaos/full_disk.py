"""A small disk that can be filled: a tmpfs where it can be mounted, nothing where it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SIZE_BYTES: Final = 64 * 1024 * 1024
_BLOCK: Final = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A folder on a file system of its own."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Leave no byte free."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk | str]:
    """Mount a small disk at ``folder`` for the length of the block; where that is impossible, give the reason."""
    if os.geteuid() != 0:
        yield "only root may mount a tmpfs"
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES},mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        yield f"mount failed: {mounted.stderr.strip()}"
        return
    try:
        yield SmallDisk(folder)
    finally:
        with suppress(OSError):
            SmallDisk(folder).free()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
