"""Takes too much memory in processes that forbid others to look into them."""

import os
import signal

from farm_client.sandbox.escape_attempt import bound, hold, libc

SET_DUMPABLE = 4
libc.prctl(SET_DUMPABLE, 0, 0, 0, 0)
share = bound("memory_bytes") * 6 // 10
for _ in range(3):
    if os.fork() == 0:
        taken = b"\1" * share
        signal.pause()
hold(f"held 3 times {share} bytes, undumpable")
