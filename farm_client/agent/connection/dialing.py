"""Opening the WebSocket to a farm, and saying in a sentence why it did not open.

Three kinds of failures: what no other try mends (a wrong token, an address that cannot be one), what another try may
mend, and an answer that no farm gives. The last is a wrong address to who never met a farm there, and a proxy without
its server to everybody else: see ``NotAFarm``.
"""

from __future__ import annotations

import os
import socket
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHeader,
    InvalidMessage,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    NegotiationError,
)

from farm_client.agent.connection.address import JoinAddress
from farm_client.agent.errors import BadAddress, NotAFarm, OutOfReach
from farm_client.proxies import proxy_for, way_to
from protocol.errors import FarmError, Unauthorized
from protocol.limits import MAX_FRAME_BYTES

LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
"""A farm, or what stands in front of it, is not obeyed beyond that: it may be back much sooner."""
_CLOSE_SECONDS: Final = 1.0
PING_SECONDS: Final = 10.0
"""A farm that vanished without a word (a cut cable, a sleeping laptop) is noticed by an unanswered ping."""
_UNSENT_IN_KERNEL_BYTES: Final = 64 * 1024
_PASSING: Final = frozenset({408, 425, 429})
"""Statuses below 500 that say themselves that they pass."""
_SHOWN_CHARS: Final = 100


class _Connection(ClientConnection):
    """Says what was answered where the answer came before the request had left: websockets then says otherwise."""

    async def handshake(self, *arguments: Any, **named: Any) -> None:
        try:
            await super().handshake(*arguments, **named)
        except Exception as error:
            answer = self.protocol.handshake_exc
            if answer is not None and answer is not error:
                raise answer  # noqa: B904  it keeps the cause that it has
            raise


class _Connect(connect):
    """Follows no redirect: no farm redirects, and the token is for the farm's address alone."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def dial(address: JoinAddress) -> ClientConnection:
    """Open the WebSocket, however long it takes. Raises: anything; ``explain`` says what it means."""
    websocket = await _Connect(
        address.websocket_url,
        additional_headers=address.headers,
        compression=None,
        max_size=MAX_FRAME_BYTES,
        ping_interval=PING_SECONDS,
        ping_timeout=PING_SECONDS,
        close_timeout=_CLOSE_SECONDS,
        open_timeout=None,
        create_connection=_Connection,
        proxy=proxy_for(address.websocket_url),
    )
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # the kernel would take megabytes at once: a heartbeat must not wait behind them, nor the writer be deceived
        websocket.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_KERNEL_BYTES
        )
    return websocket


def explain(error: Exception, address: JoinAddress) -> FarmError:
    """Return what a failure to connect means: Unauthorized and BadAddress are final, OutOfReach is not."""
    told: FarmError
    way = way_to(address.websocket_url)
    match error:
        case TimeoutError():
            told = OutOfReach(f"{address.shown} does not answer{way}", was_slow=True)
        case InvalidURI():
            told = BadAddress(f"the address {address.shown} is not valid: {error.msg}")
        case ssl.SSLCertVerificationError():
            told = NotAFarm(f"the certificate of {address.shown} is not trusted ({_brief(error)})")
        case InvalidStatus():
            told = _explain_status(error, address)
        case InvalidProxyStatus():
            told = _explain_proxy_status(error, address)
        case InvalidMessage(__cause__=EOFError()):
            told = OutOfReach(f"{address.shown} closed the connection before it answered")
        case ConnectionClosed():
            told = OutOfReach(f"{address.shown} ended the connection before its welcome ({_brief(error)})")
        case InvalidMessage(__cause__=ValueError()) | InvalidHeader() | NegotiationError():
            told = NotAFarm(f"there is no farm at {address.shown} (it answers otherwise: {_brief(error)})")
        case _:
            told = OutOfReach(f"{address.shown} cannot be reached{way} ({_brief(error)})")
    return told


def retry_after_seconds(value: str | None, now: datetime) -> float:
    """Read a Retry-After header, seconds or a date (RFC 9110, section 10.2.3), as seconds within sane bounds."""
    if value is None:
        return 0.0
    text = value.strip()[:_SHOWN_CHARS]
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_RETRY_AFTER_SECONDS)
    try:
        date = parsedate_to_datetime(text)
        wait_seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait_seconds.total_seconds(), 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _explain_status(error: InvalidStatus, address: JoinAddress) -> FarmError:
    status, headers = error.response.status_code, error.response.headers
    if status == 401:
        return Unauthorized(
            f"{address.shown} refused this client; paste the address that `farm-server up` printed, token and all"
        )
    if status >= 500 or status in _PASSING:
        wait_seconds = retry_after_seconds(next(iter(headers.get_all("Retry-After")), None), datetime.now(UTC))
        return OutOfReach(f"{address.shown} answers with status {status}", retry_after_seconds=wait_seconds)
    if status == 403:
        return NotAFarm(f"{address.shown} refuses this client (status 403)", Unauthorized)
    leads_to = next(iter(headers.get_all("Location")), None)
    leading = f" and leads to {leads_to[:_SHOWN_CHARS]!a}" if leads_to is not None and 300 <= status < 400 else ""
    return NotAFarm(f"there is no farm at {address.shown} (it answers with status {status}{leading})")


def _explain_proxy_status(error: InvalidProxyStatus, address: JoinAddress) -> FarmError:
    status = error.response.status_code
    if status == 407:
        return NotAFarm(
            f"the proxy on the way to {address.shown} wants a user name and a password (status 407); "
            "write them into the environment's variable, like http://USER:PASSWORD@HOST:PORT"
        )
    return OutOfReach(f"the proxy on the way to {address.shown} answers with status {status}")


def _brief(error: BaseException) -> str:
    """Say in some words what happened, whatever a stranger wrote into it."""
    if isinstance(error, InvalidMessage) and error.__cause__ is not None:
        return _brief(error.__cause__)
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and (error.errno or 0) > 0:
        said = os.strerror(error.errno or 0)  # an event loop writes its own words into the error
    else:
        said = getattr(error, "strerror", None) or str(error)
    return ascii(str(said)[:_SHOWN_CHARS])[1:-1].lower() or type(error).__name__
