"""Fills the disk with files that it deletes and keeps open."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, bound, hold

part, kept = b"\1" * (bound("file_bytes") // 2), []
for number in range(4):
    path = Path(TARGETS.scratch, str(number))
    file = path.open("wb", buffering=0)
    file.write(part)
    path.unlink()
    kept.append(file)
hold("wrote twice what it may to deleted files")
