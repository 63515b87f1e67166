"""Which names this server answers to. Pure.

A web page may make its own name resolve to 127.0.0.1 and read, with the browser of somebody who sits behind the
firewall, what a local server shows without a token (DNS rebinding). The browser tells which name it dialled.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from farm_server.edge.refusal import Refusal

EVERY: Final = "*"
_LOCAL: Final = "localhost"


class AllowedHosts:
    """Loopback names and numeric addresses are always allowed: no other site has those. ``*`` allows every name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(name.strip().lower().rstrip(".") for name in names if name.strip())

    def refusal(self, host: str | None) -> Refusal | None:
        """Return why a request with this Host header (None: there was none) is not answered, if so."""
        if host is None or EVERY in self._names:
            return None
        name = _name_of(host)
        if name in self._names or name == _LOCAL or name.endswith(f".{_LOCAL}") or _is_numeric(name):
            return None
        message = (
            f"this server does not answer to the name {name[:100]!r}; its operator can allow it: "
            "FARM_SERVER_ALLOWED_HOSTS (names, with commas between them)"
        )
        return Refusal(HTTPStatus.MISDIRECTED_REQUEST, "unknown_host", message)


def _name_of(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _is_numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
