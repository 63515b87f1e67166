"""Deletes, cuts and overwrites the secret; what came of it is seen from outside."""

import os
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS

with suppress(OSError):
    os.truncate(TARGETS.secret_file, 0)
with suppress(OSError):
    Path(TARGETS.secret_file).write_bytes(b"mine")
Path(TARGETS.secret_file).unlink()
