"""What a case of the escape suite needs: what to try it on, a way to say that it got out, and a hold on what it took.

A case is a script of ``farm_client.sandbox.escapes``. It is run as ``__main__`` in the very sandbox that is to hold it:

    python -P -m farm_client.sandbox.lifeline AGENT_PID INSIDE farm_client.sandbox.escapes NAME
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Final

from farm_client.sandbox.targets import Targets
from farm_client.sandbox.words import from_words

BEGUN: Final = "BEGUN"
ESCAPED: Final = "ESCAPED "
TARGETS_VARIABLE: Final = "FARM_CASE_TARGETS"
HOLD_SECONDS: Final = 3.0
"""How long what is over a bound must be there for it to count: measuring takes its turns."""
_REFUSED: Final = (1, 13, 38)
"""EPERM, EACCES and ENOSYS: what a sandbox answers. Other errors come from further in."""

TARGETS: Final = from_words(Targets, os.environ[TARGETS_VARIABLE]) if TARGETS_VARIABLE in os.environ else Targets()
libc: Final = ctypes.CDLL(None, use_errno=True)


def escaped(what: str) -> None:
    """Say that the case got what it must not get."""
    sys.stdout.write(f"{ESCAPED}{what}\n")
    sys.stdout.flush()


def bound(name: str) -> int:
    """Return one of this sandbox's bounds."""
    return int(TARGETS.bounds[name])


def hold(what: str) -> None:
    """Keep what was taken for a while; whoever is not ended in it has escaped the bound."""
    time.sleep(HOLD_SECONDS)
    escaped(what)


def system_call(numbers: tuple[int, int], *arguments: int) -> int:
    """Make a system call by its numbers on x86_64 and aarch64. Raises: OSError with the kernel's answer."""
    column = 0 if os.uname().machine == "x86_64" else 1
    ctypes.set_errno(0)
    result = int(libc.syscall(numbers[column], *(ctypes.c_long(value) for value in arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def is_reached(numbers: tuple[int, int], *arguments: int) -> bool:
    """Return whether a system call gets as far as the kernel's own code, whatever that thinks of the arguments."""
    try:
        system_call(numbers, *arguments)
    except OSError as error:
        return error.errno not in _REFUSED
    return True
