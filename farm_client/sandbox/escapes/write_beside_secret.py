"""Writes a file into the agent's folder, by name and by moving one there; what came of it is seen from outside."""

from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS

home = Path(TARGETS.secret_file).parent
own = Path(TARGETS.scratch, "own")
own.write_text("planted")
with suppress(OSError):
    (home / "planted").write_text("planted")
own.rename(home / "moved")
