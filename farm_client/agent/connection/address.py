"""The one line that a volunteer pastes: where the farm is, and the token that opens it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from farm_client.agent.errors import BadAddress
from farm_client.farm_address import split_address

_WEBSOCKET_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_HTTP_SCHEMES: Final = {"ws": "http", "wss": "https"}
EXAMPLE: Final = "paste the address that `farm-server up` printed, like ws://TOKEN@farm.example.org:8470"


@dataclass(frozen=True, slots=True)
class JoinAddress:
    """A farm's address, taken apart. ``shown`` has no token and may be printed."""

    websocket_url: str
    http_url: str
    shown: str
    token: str | None = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authorize this client."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def parse_address(url: str) -> JoinAddress:
    """Take an address apart; the token is all that stands before the last ``@``.

    Raises: BadAddress saying what is wrong with it.
    """
    try:
        parts = split_address(url)
    except ValueError as error:
        raise BadAddress(f"the address is not a farm's ({error}); {EXAMPLE}") from None
    scheme = _WEBSOCKET_SCHEMES.get(parts.scheme)
    if scheme is None:
        raise BadAddress(f"the address must start with ws:// or wss://; {EXAMPLE}")
    base = replace(parts, scheme=scheme, path=parts.path.removesuffix("/v1/farm"))
    return JoinAddress(
        websocket_url=base.url(path="/v1/farm"),
        http_url=base.url(_HTTP_SCHEMES[scheme]),
        shown=base.url(),
        token=parts.token,
    )
