"""Opens another program's System V shared memory."""

import ctypes
import os

from farm_client.sandbox.escape_attempt import TARGETS, escaped, libc

if not TARGETS.queue_key or libc.shmget(TARGETS.queue_key, 1, 0) < 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
escaped("opened another program's shared memory")
