"""The one line that a volunteer pastes: where the farm is, and the token that opens it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

from farm_client.agent.errors import BadAddress

_WEBSOCKET_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_HTTP_SCHEMES: Final = {"ws": "http", "wss": "https"}
_EXAMPLE: Final = "paste the address that `farm-server up` printed, like ws://TOKEN@farm.example.org:8470"


@dataclass(frozen=True, slots=True)
class FarmAddress:
    """A farm's address, taken apart. ``shown`` has no token and may be printed."""

    websocket_url: str
    http_url: str
    shown: str
    token: str | None = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that open the farm's door."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def parse_address(url: str) -> FarmAddress:
    """Take an address apart; the token is the URL's user name.

    Raises: BadAddress saying what is wrong with it.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError as error:
        raise BadAddress(f"the address is not a URL ({error}); {_EXAMPLE}") from None
    scheme = _WEBSOCKET_SCHEMES.get(parts.scheme)
    if scheme is None:
        raise BadAddress(f"the address must start with ws:// or wss://; {_EXAMPLE}")
    if not host:
        raise BadAddress(f"the address names no host; {_EXAMPLE}")
    token = unquote(parts.username) if parts.username else None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise BadAddress(f"the address has a token with characters that no token has; {_EXAMPLE}")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    base = parts.path.rstrip("/").removesuffix("/v1/farm")
    return FarmAddress(
        websocket_url=urlunsplit((scheme, netloc, f"{base}/v1/farm", "", "")),
        http_url=urlunsplit((_HTTP_SCHEMES[scheme], netloc, base, "", "")),
        shown=urlunsplit((scheme, netloc, base, "", "")),
        token=token,
    )
