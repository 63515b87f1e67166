"""Makes a device node in its own folder and opens it, as root could that of the disk."""

import os
import stat
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

node = Path(TARGETS.scratch, "node")
os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 11))  # the kernel's log
os.close(os.open(node, os.O_RDONLY | os.O_NONBLOCK))
escaped("opened a device node of its own")
