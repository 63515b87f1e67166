"""The first process of a container: waits for the one that runs the task, passes its exit code on, and ends it all.

When it ends, the kernel ends every process of the container. It ends at the latest when its lifeline is cut: a socket
whose other end is open in the container's keeper alone (``container.py``), on the outside.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

from farm_client.sandbox import system

_PR_SET_DUMPABLE: Final = 4
_STDERR: Final = 2
_MOST_DESCRIPTORS: Final = 65536
_CUT: Final = 1
_PODMANS_OWN: Final = ("HOSTNAME", "TERM", "container")
"""Variables that Podman adds to those that it is told."""


def go_on_as_a_child(lifeline: int) -> None:
    """Return in a child. This process stays behind as the first one, and never returns."""
    for name in _PODMANS_OWN:
        os.environ.pop(name, None)
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        return
    # its memory and its lifeline are none of the task's, which runs as the same user
    system.call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    # the task's socket: the agent must hear when the task closes it
    os.closerange(_STDERR + 1, lifeline)
    os.closerange(lifeline + 1, _MOST_DESCRIPTORS)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    ended = 0
    while ended != child:
        with suppress(InterruptedError):
            ended, status = os.waitpid(-1, 0)
    with suppress(OSError):
        os.write(lifeline, str(_as_shell(os.waitstatus_to_exitcode(status))).encode())
    os._exit(0)


def _end_with(lifeline: int) -> None:
    with suppress(OSError):
        os.read(lifeline, 1)
    os._exit(_CUT)


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code
