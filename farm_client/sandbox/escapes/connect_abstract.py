"""Connects to a Unix socket without a path, as desktops have."""

import socket

from farm_client.sandbox.escape_attempt import TARGETS, escaped

with socket.socket(socket.AF_UNIX) as unix:
    unix.connect("\0" + TARGETS.unix_abstract)
    escaped("connected to an abstract Unix socket")
