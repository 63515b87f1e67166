"""Takes too much memory in one that is shared, which the kernel's limit does not count."""

import mmap

from farm_client.sandbox.escape_attempt import bound, hold

taken = mmap.mmap(-1, 3 * bound("memory_bytes") // 2)
taken.write(b"\1" * len(taken))
hold(f"held {len(taken)} bytes of shared memory")
