"""A farm's address taken apart, in this one place for agent, SDK and CLI: ``SCHEME://TOKEN@HOST:PORT/PATH``.

The token may hold any printable characters, percent-encoded or as they are: everything up to the last ``@`` is token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class AddressParts:
    """An address without its token, which is kept apart so that the rest can be shown."""

    scheme: str
    place: str
    """Host and port, as they stand in a URL."""
    path: str
    """Empty, or begins with a slash and ends without one."""
    token: str | None = field(repr=False)

    def url(self, scheme: str | None = None, path: str = "") -> str:
        """Return the URL without the token, with another ``scheme`` or a longer ``path`` where they are given."""
        return f"{scheme or self.scheme}://{self.place}{self.path}{path}"


def split_address(text: str) -> AddressParts:
    """Take an address apart. Raises: ValueError saying what is wrong with it, in a line without the token."""
    scheme, mark, rest = text.strip().partition("://")
    if not mark or not scheme.isascii() or not scheme.isalnum():
        raise ValueError("it does not begin with a scheme such as http:// or ws://")
    userinfo, _, place = rest.rpartition("@")
    if not place.isprintable() or " " in place:
        raise ValueError("the host has a blank or an unprintable character")
    parts = urlsplit(f"{scheme.lower()}://{place}")
    host, port = parts.hostname, parts.port
    if not host:
        raise ValueError("it names no host")
    _check_labels(host)
    shown_host = f"[{host}]" if ":" in host else host
    return AddressParts(
        scheme=scheme.lower(),
        place=shown_host if port is None else f"{shown_host}:{port}",
        path=parts.path.rstrip("/"),
        token=_token(userinfo),
    )


def _token(userinfo: str) -> str | None:
    try:
        token = unquote(userinfo, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("its token is not UTF-8") from None
    if not token.isprintable():
        raise ValueError("its token has an unprintable character")
    return token or None


def _check_labels(host: str) -> None:
    """Refuse what no resolver takes, in a sentence."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{host!r} is no host name") from None
