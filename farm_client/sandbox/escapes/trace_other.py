"""Traces another program, as a debugger does."""

import ctypes
import os

from farm_client.sandbox.escape_attempt import TARGETS, escaped, libc

SEIZE = 0x4206
if libc.ptrace(SEIZE, TARGETS.decoy_pid, None, None) != 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
escaped("traces another program")
