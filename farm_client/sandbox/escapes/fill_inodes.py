"""Makes more files than it may, all of them empty."""

import os
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, bound, hold

amount = 2 * bound("files")
for number in range(amount):
    os.close(os.open(Path(TARGETS.scratch, str(number)), os.O_CREAT | os.O_WRONLY))
hold(f"made {amount} files")
