"""Ends another program by a signal; what came of it is seen from outside."""

import os
import signal
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS

with suppress(OSError):
    os.kill(TARGETS.decoy_pid, signal.SIGTERM)
descriptor = os.pidfd_open(TARGETS.decoy_pid)
signal.pidfd_send_signal(descriptor, signal.SIGTERM)
