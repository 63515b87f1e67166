"""Sends a datagram to a server on this machine; what came of it is seen from outside."""

import socket

from farm_client.sandbox.escape_attempt import TARGETS

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.sendto(b"out", ("127.0.0.1", TARGETS.tcp_port))
