"""Connects to a server on this machine's loopback."""

import socket

from farm_client.sandbox.escape_attempt import TARGETS, escaped

with socket.create_connection(("127.0.0.1", TARGETS.tcp_port), timeout=1):
    escaped("connected to a server on loopback")
