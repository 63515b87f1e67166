"""Child processes that end with their parent: the first lines that such a child runs before its module.

    python -P -m farm_client.sdk.child_process PARENT_PID MODULE ARGUMENTS…

However we end, by SIGKILL too, the kernel then ends the child. Linux only: elsewhere a child outlives a killed parent.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from farm_client.sandbox.lifeline import die_with

LAST_LINES: Final = 20


class ChildAnswer(NamedTuple):
    """A child's report, None if it ended before it wrote one; its exit code, and the last lines that it printed."""

    report: bytes | None
    exit_code: int
    output: str


def child_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs ``python -m module arguments…`` for as long as this process lives.

    The thread that starts it must live as long: to the kernel, a child's parent is a thread.
    """
    # -P: a folder of the user's that is called as one of our packages must not be imported instead.
    return [sys.executable, "-P", "-m", "farm_client.sdk.child_process", str(os.getpid()), module, *arguments]


def ask_child(module: str, request: str, folder: Path) -> ChildAnswer:
    """Have ``python -m module REQUEST.json REPORT.json`` run, with files of a folder, and return what came of it."""
    asked, report, printed = folder / "request.json", folder / "report.json", folder / "output.txt"
    asked.write_text(request, encoding="utf-8")
    with printed.open("wb") as file:
        ended = subprocess.run(
            child_command(module, str(asked), str(report)),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
        )
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return ChildAnswer(report.read_bytes() if report.exists() else None, ended.returncode, "\n".join(lines))


def main() -> None:
    """Run the module named on the command line, with the arguments behind it."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent_pid)
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
