"""Fills the folder for shared memory beyond its size."""

import os
import tempfile

from farm_client.sandbox.escape_attempt import bound, escaped

with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:
    while os.fstat(file.fileno()).st_size <= bound("shm_bytes"):
        file.write(b"\1" * 2**20)
    escaped("wrote more to /dev/shm than it may")
