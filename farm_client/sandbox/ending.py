"""Ends a sandboxed process with all that descends from it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from farm_client.sandbox.watch import tree


def end_all(pid: int) -> None:
    """Kill a process that was started as the leader of a session, and every process group under it, at once.

    In a process-id namespace everything ends with its first process. Elsewhere a group is killed as a whole, so that
    nothing can start another process in between; the filter of system calls keeps all in the groups they began in.
    """
    groups = set()
    for one in tree(pid):
        with suppress(ProcessLookupError):
            if os.getsid(one) == pid:
                groups.add(os.getpgid(one))
    for group in groups | {pid}:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
