"""The listening socket, and how the server is reached through it."""

from __future__ import annotations

import errno
import os
import socket
from urllib.parse import quote, urlsplit

from farm_server.environment.data_folder import ServerInfo
from farm_server.environment.settings import ServerSettings
from farm_server.environment.tokens import Tokens
from protocol.errors import Conflict, FarmError, Unavailable

_UNACKNOWLEDGED_MILLISECONDS = 30_000
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # recognised, not bound
_EVERY_ADDRESS = _LOOPBACK.keys()


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket. Raises: Conflict if the port is in use; Unavailable if the address can't be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # a peer that stopped reading, or vanished, must not keep a closed connection's bytes for ever
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _explained(host, port, error) from error
    listener.set_inheritable(False)
    return listener


def bind_kept(host: str, port: int, kept_port: int | None) -> socket.socket:
    """Return a bound socket; where any port will do (0) it is the one of the last time, if that is still free.

    So clients find a server again that was killed. Raises: Conflict; Unavailable.
    """
    if port == 0 and kept_port is not None:
        try:
            return bind(host, kept_port)
        except Conflict:
            pass  # somebody else has it now: any port will do
    return bind(host, port)


def server_info(settings: ServerSettings, listener: socket.socket, tokens: Tokens) -> ServerInfo:
    """Return the addresses, with tokens, that a server with this socket is reached by."""
    port = listener.getsockname()[1]
    host = socket.gethostname() if settings.host in _EVERY_ADDRESS else settings.host
    url = (settings.public_url or _url(host, port)).rstrip("/")
    parts = urlsplit(url)
    websocket = "wss" if parts.scheme == "https" else "ws"
    place = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    return ServerInfo(
        pid=os.getpid(),
        url=url,
        join_url=f"{websocket}://{quote(tokens.join, safe='')}@{place}",
        farm_url=f"{parts.scheme}://{quote(tokens.farm, safe='')}@{place}",
        local_url=_url(_LOOPBACK.get(settings.host, settings.host), port),
    )


def names_of(settings: ServerSettings) -> list[str]:
    """Return the names that this server is reached by, as far as it can know them, and those that the settings add."""
    here = socket.gethostname()
    public = urlsplit(settings.public_url or "").hostname or ""
    return [settings.host, here, f"{here}.local", public, *settings.allowed_hosts.split(",")]


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _explained(host: str, port: int, error: OSError) -> FarmError:
    if error.errno == errno.EADDRINUSE:
        return Conflict(f"port {port} on {host} is in use; stop what listens there or give another --port (0: any)")
    if error.errno == errno.EACCES:
        return Unavailable(f"port {port} needs more rights than this user has; give --port 1024 or higher")
    return Unavailable(f"can't listen on {host}: {error.strerror or error}; give --host an address of this machine")
