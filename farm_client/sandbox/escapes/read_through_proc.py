"""Goes around its view of the files through the roots that /proc shows."""

from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

for process in ("self", "1", str(TARGETS.decoy_pid), "thread-self"):
    for way in ("root", "cwd/../../../../../../..", "task/1/root"):
        with suppress(OSError):
            Path(f"/proc/{process}/{way}{TARGETS.secret_file}").read_bytes()
            escaped(f"read the secret through /proc/{process}/{way}")
