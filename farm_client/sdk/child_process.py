"""Child processes that end with their parent: the first lines that such a child runs before its module.

    python -P -m farm_client.sdk.child_process PARENT_PID MODULE ARGUMENTS…

However we end, by SIGKILL too, the kernel then ends the child. Linux only: elsewhere a child outlives a killed parent.
"""

from __future__ import annotations

import os
import runpy
import sys

from farm_client.executor.lifeline import die_with


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs ``python -m module arguments…`` for as long as this process lives.

    The thread that starts it must live as long: to the kernel, a child's parent is a thread.
    """
    # -P: a folder of the user's that is called as one of our packages must not be imported instead.
    return [sys.executable, "-P", "-m", "farm_client.sdk.child_process", str(os.getpid()), module, *arguments]


def main() -> None:
    """Run the module named on the command line, with the arguments behind it."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent_pid)
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
