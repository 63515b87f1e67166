"""Takes its own limits off, and puts itself before the volunteer's programs."""

import os
import resource
from contextlib import suppress

from farm_client.sandbox.escape_attempt import escaped

for name in ("NPROC", "NOFILE", "DATA", "FSIZE"):
    which = getattr(resource, f"RLIMIT_{name}")
    _soft, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            resource.setrlimit(which, (hard + 1, hard + 1))
            escaped(f"raised its own RLIMIT_{name}")
os.setpriority(os.PRIO_PROCESS, 0, -10)
escaped("put itself before the volunteer's programs")
