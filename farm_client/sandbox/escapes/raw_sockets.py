"""Opens sockets that see and forge packets, speak to the kernel's network settings, or to the hypervisor."""

import socket
from contextlib import suppress

from farm_client.sandbox.escape_attempt import escaped

VSOCK, BLUETOOTH, ALG = 40, 31, 38
for family, kind in (
    (socket.AF_PACKET, socket.SOCK_DGRAM),
    (socket.AF_INET, socket.SOCK_RAW),
    (socket.AF_NETLINK, socket.SOCK_RAW),
    (VSOCK, socket.SOCK_STREAM),
    (BLUETOOTH, socket.SOCK_RAW),
    (ALG, socket.SOCK_SEQPACKET),
):
    with suppress(OSError), socket.socket(family, kind):
        escaped(f"opened a socket of family {family}")
