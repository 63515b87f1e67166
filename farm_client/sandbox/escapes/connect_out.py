"""Looks for a way out of this machine, over IPv4 and IPv6, and sends nothing."""

import socket

from farm_client.sandbox.escape_attempt import escaped

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.connect(("192.0.2.1", 9))  # a network for documentation, which is nowhere
    escaped("found a route out of this machine")
