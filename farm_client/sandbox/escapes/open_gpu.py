"""Opens a GPU that was not granted."""

import os
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS, escaped

for device in TARGETS.devices:
    if "nvidia" in device or "dri" in device:
        with suppress(OSError):
            os.close(os.open(device, os.O_RDWR | os.O_NONBLOCK))
            escaped(f"opened {device}")
