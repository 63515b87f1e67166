"""Unix sockets in the agent's folder, which nobody but its owner can open."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from farm_client.agent.errors import NoControlSocket
from farm_client.sandbox.short_paths import short_path

_ROOT: Final = 0
_SAFE_PATH_BYTES: Final = 100
"""What each system takes as the path of a Unix socket; Linux takes 107."""


def listening_socket(path: Path, backlog: int) -> socket.socket:
    """Return a listening socket that nobody else could connect to at any moment. Raises: NoControlSocket."""
    listening = socket.socket(socket_family(), socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        with socket_address(path) as address:
            listening.bind(address)
        path.chmod(0o600)  # before it listens: until then it refuses everybody
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise NoControlSocket(f"no socket can be made at {path} ({error})") from error
    return listening


def socket_family() -> int:
    """Return the family of such sockets. Raises: NoControlSocket where the system has none."""
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise NoControlSocket("this system has no local sockets, so a running agent cannot be spoken to")
    return int(family)


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Give a path in the length that a Unix socket takes. Raises: OSError where a long one cannot be shortened."""
    if len(os.fsencode(path)) <= _SAFE_PATH_BYTES:
        yield str(path)
        return
    with short_path(str(path)) as short:
        yield short


def is_of_this_user(connection: Any) -> bool:
    """Return whether the other end is of this user, or root; true where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.geteuid(), _ROOT)
