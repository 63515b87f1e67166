"""Fills the disk in a folder so deep that its path is too long, and that a careless walk falls down."""

import os

from farm_client.sandbox.escape_attempt import TARGETS, bound, hold

os.chdir(TARGETS.scratch)
for _ in range(2100):
    os.mkdir("d")
    os.chdir("d")
part = b"\1" * (bound("file_bytes") // 2)
for number in range(4):
    with open(str(number), "wb") as file:
        file.write(part)
hold("wrote twice what it may, too deep to be seen")
