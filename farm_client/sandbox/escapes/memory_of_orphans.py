"""Takes too much memory in processes whose parents are gone."""

import os
import signal

from farm_client.sandbox.escape_attempt import bound, hold

share = bound("memory_bytes") * 6 // 10
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            taken = b"\1" * share
            signal.pause()
        os._exit(0)
    os.wait()
hold(f"held 3 times {share} bytes in orphans")
