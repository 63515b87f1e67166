"""Takes processor time from another program, by priority, by affinity, and by limits."""

import os
import resource
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS, escaped

with suppress(OSError):
    os.setpriority(os.PRIO_PROCESS, TARGETS.decoy_pid, 19)
    escaped("lowered another program's priority")
with suppress(OSError):
    os.sched_setaffinity(TARGETS.decoy_pid, os.sched_getaffinity(0))
    escaped("bound another program to processors")
resource.prlimit(TARGETS.decoy_pid, resource.RLIMIT_NOFILE, resource.prlimit(TARGETS.decoy_pid, resource.RLIMIT_NOFILE))
escaped("set another program's limits")
