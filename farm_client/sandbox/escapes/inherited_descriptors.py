"""Uses what files the agent had open when it was started."""

import os
from contextlib import suppress

from farm_client.sandbox.escape_attempt import escaped

for descriptor in range(3, 1024):
    with suppress(OSError):
        os.fstat(descriptor)
        leads_to = os.readlink(f"/proc/self/fd/{descriptor}")
        if not leads_to.startswith("/proc"):
            escaped(f"inherited descriptor {descriptor}")
