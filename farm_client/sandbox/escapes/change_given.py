"""Changes a shard in the agent's cache, which other tasks train on."""

import os
from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

given = Path(TARGETS.given_file)
with suppress(OSError):
    os.chmod(given, 0o600)
with suppress(OSError), given.open("ab") as file:
    file.write(b"poison")
    escaped("wrote to a given file")
link = Path(TARGETS.scratch, "link")
with suppress(OSError):
    os.link(given, link)
    link.write_bytes(b"poison")
    escaped("wrote to a given file through a hard link")
given.rename(given.with_name("gone"))
escaped("renamed a given file")
