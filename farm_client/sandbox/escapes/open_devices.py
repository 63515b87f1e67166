"""Opens the machine's devices that nobody granted: disks, memory, the kernel's log, FUSE."""

import os
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS, escaped
from farm_client.sandbox.probes import HARMLESS_DEVICES

for device in TARGETS.devices:
    if "nvidia" not in device and "dri" not in device:
        with suppress(OSError):
            os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK))
            escaped(f"opened {device}")
with suppress(OSError):
    for name in sorted(set(os.listdir("/dev")) - HARMLESS_DEVICES - set(TARGETS.granted)):
        if os.access(f"/dev/{name}", os.R_OK | os.W_OK):  # to open it could do harm: some wake up by that
            escaped(f"may open /dev/{name}")
