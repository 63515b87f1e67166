"""Reads a file of the agent's folder, such as its token, by its name."""

from pathlib import Path

from farm_client.sandbox.escape_attempt import TARGETS, escaped

escaped(f"read {len(Path(TARGETS.secret_file).read_bytes())} bytes of the agent's secret")
