"""Takes too much memory in several processes, none of which takes too much."""

import os
import signal

from farm_client.sandbox.escape_attempt import bound, hold

share = bound("memory_bytes") * 6 // 10
for _ in range(3):
    if os.fork() == 0:
        taken = b"\1" * share
        signal.pause()
hold(f"held 3 times {share} bytes")
