"""Reads the machine's users, their password hashes, its host keys and its network's settings."""

from contextlib import suppress
from pathlib import Path

from farm_client.sandbox.escape_attempt import escaped

for path in ("/etc/passwd", "/etc/shadow", "/etc/ssh", "/etc/hosts", "/etc/resolv.conf", "/var/log", "/var/lib"):
    with suppress(OSError):
        whole = Path(path)
        if list(whole.iterdir()) if whole.is_dir() else whole.read_bytes():
            escaped(f"read {path}")
