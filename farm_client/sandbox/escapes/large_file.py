"""Writes one file that is larger than all that it may write."""

import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, bound, escaped

with Path(TARGETS.scratch, "large").open("wb", buffering=0) as file:
    os.ftruncate(file.fileno(), bound("file_bytes") + 1)
    escaped("made a file over the bound")
