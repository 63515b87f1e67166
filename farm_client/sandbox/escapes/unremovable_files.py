"""Leaves files and folders that resist being deleted: without rights, with odd names, very deep."""

import os

from farm_client.sandbox.escape_attempt import TARGETS

os.chdir(TARGETS.scratch)
os.mkdir("locked")
with open("locked/file\n\x1b[31m", "wb"):
    pass
os.chmod("locked/file\n\x1b[31m", 0)
os.chmod("locked", 0o100)
os.symlink("/", "root")
os.symlink("loop", "loop")
os.mkfifo("fifo")
for _ in range(1200):
    os.mkdir("d")
    os.chdir("d")
os.chmod(".", 0)
