"""Which proxy of the environment leads to an address: the same one for the WebSocket, for bulk bytes and for REST.

The variables are those of every other program: ``HTTP_PROXY`` for ``http://`` and ``ws://``, ``HTTPS_PROXY`` for
``https://`` and ``wss://``, then ``SOCKS_PROXY`` and ``ALL_PROXY``; lower case wins. ``NO_PROXY`` lists hosts, domains,
networks and ``*``, each with or without a port. Nothing on this machine is ever asked for through a proxy.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from protocol.errors import FarmError

_VARIABLES: Final = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_PROXY_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_ALIASES: Final = {"socks": "socks5h"}
_OWN_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+")
_SPARED_PORT: Final = re.compile(r"(?P<host>.*[^:]|\[.*\]):(?P<port>\d+)")
Address = IPv4Address | IPv6Address


class BadProxy(FarmError):
    """A proxy variable of the environment has a value that cannot be used; unset it, or write http://HOST:PORT."""

    code = "bad_proxy"


def proxy_for(url: str, proxies: Mapping[str, str] | None = None) -> str | None:
    """Return the proxy that leads to ``url``, like ``http://USER:PASSWORD@HOST:PORT``; None to go there directly.

    ``proxies`` are what the environment has, by scheme and in lower case, with ``no`` among them. Raises: BadProxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or is_loopback(host):
        return None
    known = getproxies() if proxies is None else proxies
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    if is_spared(host, port, known.get("no", "")) or (proxies is None and proxy_bypass(host)):
        return None
    for name in (_VARIABLES[parts.scheme], "socks", "all"):
        if value := known.get(name, "").strip():
            return _checked(name, value)
    return None


def way_to(url: str) -> str:
    """Return " through the proxy …", without its password, for a sentence on ``url``; nothing where there is none."""
    proxy = proxy_for(url)
    return f" through the proxy {proxy.rpartition('@')[2].rpartition('://')[2]}" if proxy is not None else ""


def is_loopback(host: str) -> bool:
    """Return whether a host, a name or an address, is this machine itself."""
    name = host.rstrip(".").lower()
    if name in _OWN_NAMES or name.endswith(".localhost"):
        return True
    address = _address(name)
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address is not None and (address.is_loopback or address.is_unspecified)


def is_spared(host: str, port: int, spared: str) -> bool:
    """Return whether a list of hosts, as ``NO_PROXY`` has it, names this one."""
    return any(_names(entry, host.rstrip(".").lower(), port) for entry in re.split(r"[,\s]+", spared.lower()) if entry)


def _names(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    if (found := _SPARED_PORT.fullmatch(entry)) is not None:
        if int(found["port"]) != port:
            return False
        entry = found["host"]
    entry = entry.strip("[]")
    address = _address(host)
    if address is not None:
        try:
            return address in ip_network(entry, strict=False)
        except ValueError:
            return False
    domain = entry.removeprefix("*").strip(".")
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _address(host: str) -> Address | None:
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]+", host) or not host[0].isdigit():
        return None
    try:
        return IPv4Address(socket.inet_aton(host))  # 127.1 and 0x7f000001 are addresses, to the system
    except OSError:
        return None


def _checked(name: str, value: str) -> str:
    """Return a proxy's address in full. The value, which may hold a password, is never shown."""
    scheme = "socks5h" if name == "socks" else "http"
    written, _, rest = value.rpartition("://")
    written = written.lower()
    scheme = scheme if not written or (name == "socks" and written == "http") else _ALIASES.get(written, written)
    if scheme not in _PROXY_PORTS:
        raise _unusable(name, f"the scheme {written!a} is not one of http, https, socks5 and socks5h")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port or _PROXY_PORTS[scheme]
        credentials = _credentials(parts)
    except ValueError as error:
        raise _unusable(name, ascii(str(error))) from None
    host = parts.hostname or ""
    if _HOST.fullmatch(host) is None:
        raise _unusable(name, "it names no host")
    return f"{scheme}://{credentials}{f'[{host}]' if ':' in host else host}:{port}"


def _credentials(parts: SplitResult) -> str:
    """Return ``USER:PASSWORD@``, or nothing. Raises: ValueError."""
    if parts.username is None:
        return ""
    for secret in (parts.username, parts.password or ""):
        unquote(secret, errors="strict")
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise ValueError("its user name or password has characters that must be written with %")
    return f"{parts.username}:{parts.password or ''}@"


def _unusable(name: str, why: str) -> BadProxy:
    return BadProxy(
        f"the variable {name.upper()}_PROXY of the environment cannot be used: {why}; unset it, "
        "or write it like http://HOST:PORT (NO_PROXY names what is reached without it)"
    )
