"""This client's own control variates (SCAFFOLD), by the task they belong to: they outlive executors and agents.

    <home>/controls/<digest of farm and client>/<digest of the task's id>.control

The executor writes a file (``executor/control_variates.py``) and gets it back with the next assignment of the task. A
client that has none, or whose file is gone, begins from zero. Those of the tasks that it worked on last are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from protocol.digests import digest_bytes

MOST_TASKS: Final = 8
"""Of so many tasks at most; each has the size of the task's model."""
_SPARE_BYTES: Final = 16 * 1024**2


class ControlStore:
    """One process owns the folder (see ``HomeFolder.held``). A disk that takes nothing is put up with."""

    def __init__(self, root: Path, farm: str, client_id: str, note: Callable[[str], None]) -> None:
        """``farm`` is its address; ``note`` gets a sentence on what was not kept."""
        self._folder = root / digest_bytes(f"{farm} {client_id}".encode())[:16]
        self._note = note
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in set(root.iterdir()) - {self._folder}:
                shutil.rmtree(folder, ignore_errors=True)

    def path(self, task_id: str) -> Path:
        """Return where that of a task is kept; there is none before its first assignment is done."""
        return self._folder / f"{digest_bytes(task_id.encode())[:32]}.control"

    def keep(self, task_id: str, file: Path, weights_bytes: int) -> None:
        """Keep what an executor left after an assignment of this task; ``file`` is moved away.

        One far larger than the task's weights is none: float32 beside weights of 16 bits is twice as much.
        """
        try:
            if file.stat().st_size > 2 * weights_bytes + _SPARE_BYTES:
                self._note("dropped a control variate that is larger than the task's model could have")
                file.unlink()
                return
            file.replace(self.path(task_id))
            os.utime(self.path(task_id))
        except OSError as error:
            self._note(f"this client's control variate was not kept ({error}): it begins from zero next time")
        self._drop_oldest()

    def _drop_oldest(self) -> None:
        with suppress(OSError):
            newest_first = sorted(self._folder.glob("*.control"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in newest_first[MOST_TASKS:]:
                path.unlink()
