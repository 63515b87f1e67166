"""Mounts a file system of its own over a folder."""

import ctypes
import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped, libc

DETACH = 2
place = Path(TARGETS.scratch, "place")
place.mkdir()
if libc.mount(b"none", str(place).encode(), b"tmpfs", 0, None) != 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
libc.umount2(str(place).encode(), DETACH)
escaped("mounted a file system")
