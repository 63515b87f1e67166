"""Climbs out of its folder by `..`, and out of a folder that it makes the root."""

import os
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

climbs = "../" * 32
with suppress(OSError):
    Path(TARGETS.scratch, climbs + TARGETS.secret_file.lstrip("/")).read_bytes()
    escaped("read the secret by climbing")
jail = Path(TARGETS.scratch, "jail")
jail.mkdir()
os.chroot(jail)  # the working folder stays outside of it: the oldest way out
Path(climbs + TARGETS.secret_file.lstrip("/")).read_bytes()
escaped("read the secret from outside of a root")
