"""What httpx sends large bodies with: urllib3, in the caller's thread.

httpx parses a body in Python, 64 KiB at a time, for 2 s of CPU a gigabyte; urllib3 hands on what one read of the socket
gave, for 0.3 s. Callers see httpx all the same, and tests replace this transport like any other. urllib3 is imported
with the first request: an agent that has nothing to do need not hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlsplit

import httpx

from farm_client.proxies import proxy_for

if TYPE_CHECKING:
    import urllib3

SHUTDOWN: Final = "shutdown"
"""The extension of a response that ends its body for whoever is reading it, from any thread."""
_READ_BYTES: Final = 1024 * 1024
_IDLE_CONNECTIONS: Final = 8


class BulkTransport(httpx.BaseTransport):
    """Connections, kept and shared by threads. Proxies and certificates are the environment's, as for httpx."""

    def __init__(self, *, trust_env: bool = True) -> None:
        self._trust_env = trust_env
        self._managers: dict[tuple[str, str | None], urllib3.PoolManager] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return when the answer's head is here. Raises: httpx.TransportError."""
        from urllib3 import Timeout  # noqa: PLC0415 - see above

        seconds = request.extensions.get("timeout", {})
        with _as_httpx_errors():
            answer = self._manager(request.url).urlopen(
                request.method,
                str(request.url),
                body=request.read() or None,
                # urllib3 writes Latin-1, httpx reads a token of other letters as what it is.
                headers={name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.raw},
                timeout=Timeout(connect=seconds.get("connect"), read=seconds.get("read")),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        body = _Body(cast("urllib3.HTTPResponse", answer))
        headers = list(answer.headers.items())
        return httpx.Response(answer.status, headers=headers, stream=body, extensions={SHUTDOWN: body.shutdown})

    def close(self) -> None:
        """Close the idle connections."""
        for manager in self._managers.values():
            for key in manager.pools.keys():  # noqa: SIM118  it cannot be iterated
                manager.pools[key].close()
            manager.clear()

    def _manager(self, url: httpx.URL) -> urllib3.PoolManager:
        proxy = proxy_for(str(url)) if self._trust_env else None
        if (url.scheme, proxy) not in self._managers:
            # to load the certificates takes a moment, and is for nothing where nothing is encrypted
            trusted = httpx.create_ssl_context(trust_env=self._trust_env) if url.scheme == "https" else None
            self._managers[url.scheme, proxy] = _open_manager(proxy, maxsize=_IDLE_CONNECTIONS, ssl_context=trusted)
        return self._managers[url.scheme, proxy]


def _open_manager(proxy: str | None, **options: Any) -> urllib3.PoolManager:
    import urllib3  # noqa: PLC0415 - see above

    if proxy is None:
        return urllib3.PoolManager(**options)
    parts = urlsplit(proxy)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme.startswith("socks"):
        from urllib3.contrib.socks import SOCKSProxyManager  # noqa: PLC0415 - see above

        return SOCKSProxyManager(proxy, username=user or None, password=password or None, **options)
    headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}") if user else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


class _Body(httpx.SyncByteStream):
    """A body in the chunks that the socket gave."""

    def __init__(self, answer: urllib3.HTTPResponse) -> None:
        self._answer = answer
        self._is_whole = False

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx_errors():
            while chunk := self._answer.read1(_READ_BYTES):
                yield chunk
            self._is_whole = True

    def shutdown(self) -> None:
        """Let the reader's next read find the end, at once if it waits in one."""
        with suppress(OSError, RuntimeError, ValueError):  # there is no connection any more
            self._answer.shutdown()

    def close(self) -> None:
        """Keep the connection if all of it was read."""
        if self._is_whole or self._answer.length_remaining == 0:
            self._answer.release_conn()
        else:
            self._answer.close()


@contextmanager
def _as_httpx_errors() -> Iterator[None]:
    from http.client import HTTPException  # noqa: PLC0415 - see above

    from urllib3.exceptions import (  # noqa: PLC0415
        ConnectTimeoutError,
        HTTPError,
        NewConnectionError,
        ReadTimeoutError,
    )

    try:
        yield
    except ReadTimeoutError as error:
        raise httpx.ReadTimeout("the farm did not go on in time") from error
    except NewConnectionError as error:  # a kind of the next one, which it is not
        raise httpx.ConnectError(str(error.__cause__ or error)) from error
    except ConnectTimeoutError as error:
        raise httpx.ConnectTimeout("the farm did not answer in time") from error
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        raise httpx.ReadError(str(error) or type(error).__name__) from error
