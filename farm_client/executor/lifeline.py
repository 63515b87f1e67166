"""Makes the executor end with its agent: the first lines that it runs before torch is imported.

    python -P -m farm_client.executor.lifeline AGENT_PID MODULE

Runs in the child, before anything of the task is there. Linux only; elsewhere the executor ends when its socket closes.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_NICENESS: Final = 5
"""The volunteer's own programs come first."""
_OOM_SCORE: Final = "500"
"""When memory runs out, the system takes the executor before the volunteer's own programs."""


def die_with(agent_pid: int) -> None:
    """Have the kernel kill this process when the agent ends, however it ends.

    The agent may have ended before the request: then this process leaves at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != agent_pid:
        sys.exit("the agent is gone")


def be_a_good_guest() -> None:
    """Yield to the volunteer's programs in processor time and memory, and leave no core file."""
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # no such file on this system, or a container that forbids it: the default score stays
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def main() -> None:
    """Run the module named on the command line under the agent's lifeline."""
    agent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with(agent_pid)
    be_a_good_guest()
    sys.argv[1:] = []
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
