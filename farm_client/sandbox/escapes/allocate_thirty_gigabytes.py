"""Allocates 30 GB."""

import mmap

from farm_client.sandbox.escape_attempt import escaped

with mmap.mmap(-1, 30 * 10**9, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000):  # which reserves none
    escaped("allocated 30 GB")
