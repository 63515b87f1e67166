"""Connects to a daemon's Unix socket in the agent's folder."""

import socket

from farm_client.sandbox.escape_attempt import TARGETS, escaped
from farm_client.sandbox.short_paths import short_path

with short_path(TARGETS.unix_path) as path, socket.socket(socket.AF_UNIX) as unix:
    unix.connect(path)
    escaped("connected to a Unix socket")
