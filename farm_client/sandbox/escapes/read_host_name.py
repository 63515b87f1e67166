"""Reads the machine's name."""

import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

if TARGETS.host_name in (os.uname().nodename, Path("/proc/sys/kernel/hostname").read_text().strip()):
    escaped("read the machine's name")
