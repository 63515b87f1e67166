"""Starts four times as many processes as it may, and holds them."""

import os
import signal

from farm_client.sandbox.escape_attempt import bound, hold

amount = 4 * bound("processes")
for _ in range(amount):
    if os.fork() == 0:
        signal.pause()
hold(f"ran {amount} processes")
