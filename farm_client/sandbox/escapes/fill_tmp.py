"""Fills the folder for temporary files beyond its size."""

import os
import tempfile

from farm_client.sandbox.escape_attempt import bound, escaped

with tempfile.TemporaryFile(dir="/tmp", buffering=0) as file:
    while os.fstat(file.fileno()).st_size <= bound("tmp_bytes"):
        file.write(b"\1" * 2**20)
    escaped("wrote more to /tmp than it may")
