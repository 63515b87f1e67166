"""Makes a file in each folder that it may read: the system, the interpreter, its packages, its own program."""

import os
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

for folder in ("/", "/dev", "/usr/bin", *TARGETS.visible):
    planted = Path(folder, f".farm-escape-{os.getpid()}")
    if not Path(folder).is_dir() or folder.startswith("/tmp"):
        continue
    with suppress(OSError):
        planted.touch(exist_ok=False)
        escaped(f"made a file in {folder}")
        planted.unlink()
