"""Starts four times as many threads as it may, and holds them."""

import threading

from farm_client.sandbox.escape_attempt import bound, hold

amount = 4 * bound("processes")
threading.stack_size(64 * 1024)
for _ in range(amount):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
hold(f"ran {amount} threads")
