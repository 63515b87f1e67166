"""Starts too many processes whose parents are gone, so that they hang under nobody who counts."""

import os
import signal

from farm_client.sandbox.escape_attempt import bound, hold

amount = 4 * bound("processes")
for _ in range(amount):
    if os.fork() == 0:
        if os.fork() == 0:
            signal.pause()
        os._exit(0)
    os.wait()
hold(f"ran {amount} processes that nobody counts")
