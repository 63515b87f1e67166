"""Takes too much memory as files that lie in no folder and that no process maps."""

import os

from farm_client.sandbox.escape_attempt import bound, hold

part = b"\1" * 2**20
taken = 0
while taken < 3 * bound("memory_bytes") // 2:
    descriptor = os.memfd_create("taken")
    for _ in range(8):
        taken += os.write(descriptor, part)
hold(f"held {taken} bytes in files of memory")
