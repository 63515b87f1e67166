"""Fills the disk with files, each of which is small enough."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, bound, hold

part = b"\1" * (bound("file_bytes") // 2)
for number in range(4):
    Path(TARGETS.scratch, str(number)).write_bytes(part)
hold("wrote twice what it may")
