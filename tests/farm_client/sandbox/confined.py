"""Python that runs in a process of its own, because a sandbox is for good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PRELUDE = """
import ctypes, errno, json, os, platform, signal, socket, sys
from pathlib import Path
from farm_client.sandbox import landlock, seccomp, system
from farm_client.sandbox.syscalls import NUMBERS
MINE = NUMBERS[platform.machine()]

def attempt(action, *arguments):
    '''Return the name of the error that an action ends with, or "done".'''
    try:
        action(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"

def make(name, *arguments):
    '''Return the name of the error that a system call fails with, or "done".'''
    return attempt(system.call, name, *arguments)

def tell(**what):
    print(json.dumps(what))
"""


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a Python that runs the prelude, then the code."""
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **(pipes | options))


def run(code: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
    """Run the prelude, then the code; return the exit status, and what it wrote to stdout and stderr."""
    process = start(code, *arguments, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def told(code: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """Run code that ends by telling something, and return that."""
    status, out, err = run(code, *arguments, **options)
    assert status == 0, err
    return dict(json.loads(out.splitlines()[-1]))
