"""System calls by number: what the C library has no function for."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

from farm_client.sandbox.errors import SandboxUnavailable
from farm_client.sandbox.syscalls import NUMBERS

_PR_SET_NO_NEW_PRIVS = 38


def machine() -> str:
    """Return the machine, as ``NUMBERS`` names it.

    Raises: SandboxUnavailable where there is no table for it: another processor, another system, a 32-bit Python.
    """
    name = platform.machine()
    if sys.platform != "linux" or name not in NUMBERS or struct.calcsize("P") != 8:
        raise SandboxUnavailable(
            f"no table of system calls for a {8 * struct.calcsize('P')}-bit Python on {sys.platform} {name}; "
            f"join from 64-bit Linux on {' or '.join(NUMBERS)}"
        )
    return name


def call(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> int:
    """Make a system call and return its result.

    Raises: OSError with the call's name, if the kernel refuses it; SandboxUnavailable as ``machine`` does.
    """
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    words = [_word(argument) for argument in (NUMBERS[machine()][name], *arguments)]
    result = int(function(*words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def give_up_privileges() -> None:
    """Let no program that this thread starts, itself included, gain rights (set-user-ID, capabilities): for good.

    Without it the kernel takes neither a seccomp filter nor a Landlock domain from a process without capabilities.

    Raises: OSError if the kernel refuses it.
    """
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _word(argument: int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None) -> object:
    if argument is None or isinstance(argument, int):
        return ctypes.c_void_p(argument)  # a whole register: an int would be 32 bits of one
    return ctypes.byref(argument)
