"""Gives the secret to all, by mode, owner, time and extended attributes; what came of it is seen from outside."""

import os
from contextlib import suppress

from farm_client.sandbox.escape_attempt import TARGETS, escaped

with suppress(OSError):
    os.chmod(TARGETS.secret_file, 0o666)
with suppress(OSError):
    os.utime(TARGETS.secret_file, (1, 1))
with suppress(OSError):
    os.chown(TARGETS.secret_file, 65534, 65534)
os.setxattr(TARGETS.secret_file, "user.mine", b"1")
escaped("set an attribute of the secret")
