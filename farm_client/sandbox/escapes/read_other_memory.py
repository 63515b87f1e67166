"""Reads another program's memory, through /proc and by a system call, and takes its open files."""

import os
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS, escaped, is_reached

with suppress(OSError):
    os.close(os.open(f"/proc/{TARGETS.decoy_pid}/mem", os.O_RDWR))
    escaped("opened another program's memory")
for name, numbers in (("process_vm_readv", (310, 270)), ("process_vm_writev", (311, 271)), ("kcmp", (312, 272))):
    if is_reached(numbers, TARGETS.decoy_pid, 0, 0, 0, 0, 0):
        escaped(f"called {name} for another program")
if is_reached((438, 438), os.pidfd_open(os.getpid()), 0, 0):
    escaped("took an open file by pidfd_getfd")
