"""Lays a symbolic link to the secret into its own folder, and reads that."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

link = Path(TARGETS.scratch, "harmless")
link.symlink_to(TARGETS.secret_file)
link.read_bytes()
escaped("read the secret through a link")
