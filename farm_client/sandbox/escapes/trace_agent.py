"""Has its parent, which may be the agent, trace it."""

import ctypes
import os

from farm_client.sandbox.escape_attempt import escaped, libc

if os.fork() == 0:
    if libc.ptrace(0, 0, None, None) == 0:
        escaped("is traced by its parent")
    os._exit(ctypes.get_errno())
raise OSError(os.waitstatus_to_exitcode(os.wait()[1]), "ptrace")
