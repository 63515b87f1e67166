"""Fills the disk in a folder that it lets nobody list."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, bound, hold

hidden = Path(TARGETS.scratch, "hidden")
hidden.mkdir(mode=0o300)
part = b"\1" * (bound("file_bytes") // 2)
for number in range(4):
    (hidden / str(number)).write_bytes(part)
hold("wrote twice what it may, out of sight")
