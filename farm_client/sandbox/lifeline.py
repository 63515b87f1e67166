"""Makes the executor end with its agent, and confines it: the first lines that it runs, before torch is imported.

    python -P -m farm_client.sandbox.lifeline AGENT_PID INSIDE MODULE [ARGUMENT ...]

Runs in the child, before anything of the task is there. AGENT_PID is 0 in a process-id namespace, where the agent has
no number: the namespace ends with the process that made it, and that one with the agent. INSIDE is ``Inside`` in words.
Linux only; elsewhere the executor ends when its socket closes.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.inside import Inside, enter
from farm_client.sandbox.words import from_words

_PR_SET_PDEATHSIG: Final = 1
_NICENESS: Final = 5
"""The volunteer's own programs come first."""
_OOM_SCORE: Final = "500"
"""When memory runs out, the system takes the executor before the volunteer's own programs."""

NOT_CONFINED: Final = 97
"""The exit code of a process that could not be confined as it was told, and so did nothing else."""


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
    import resource  # noqa: PLC0415 - Windows has none, and the agent reads NOT_CONFINED there

    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # no such file on this system, or a container that forbids it: the default score stays
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def main() -> None:
    """Run the module named on the command line under the agent's lifeline, confined."""
    agent_pid, inside, module = int(sys.argv[1]), from_words(Inside, sys.argv[2]), sys.argv[3]
    if agent_pid:
        die_with(agent_pid)
    be_a_good_guest()
    try:
        enter(inside)
    except SandboxUnavailable as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(NOT_CONFINED)
    sys.argv[1:] = sys.argv[4:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
