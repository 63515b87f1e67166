"""Reads the variables of the programs that run beside it."""

from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

for folder in Path("/proc").glob("[0-9]*"):
    with suppress(OSError):
        if f"FARM_DECOY={TARGETS.decoy_mark}".encode() in (folder / "environ").read_bytes():
            escaped("read another program's variables")
