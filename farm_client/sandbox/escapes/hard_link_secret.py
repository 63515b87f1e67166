"""Makes a hard link to the secret in its own folder."""

import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

mine = Path(TARGETS.scratch, "mine")
os.link(TARGETS.secret_file, mine)
escaped(f"linked the secret, {len(mine.read_bytes())} bytes")
