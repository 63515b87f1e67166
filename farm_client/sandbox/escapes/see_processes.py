"""Looks for another program in the list of processes."""

from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

for folder in Path("/proc").glob("[0-9]*"):
    with suppress(OSError):
        if TARGETS.decoy_mark.encode() in (folder / "cmdline").read_bytes():
            escaped("saw another program")
