"""Ends what is left of containers whose keeper was killed together with its agent, such as by the system out of memory.

The containers themselves have ended with their lifeline; Podman's monitor and the process that holds the namespaces
know none. Both have the environment that Podman was given, which names its folder (``podman.py``).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def end_leftovers(rooms: Path) -> None:
    """Kill every process of Podman's whose state lies under a folder; it must be that of no living agent."""
    if not any(rooms.glob("*/container")):
        return
    mark = os.fsencode(f"XDG_RUNTIME_DIR={rooms}/")
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is another user's
            if any(variable.startswith(mark) for variable in (folder / "environ").read_bytes().split(b"\0")):
                os.kill(int(folder.name), signal.SIGKILL)
