"""How HTTP clients of a farm are opened, and how responses are read: raw, and bounded.

An answer may be a stranger's, or an enemy's: a body without end, or one that unpacks to gigabytes. Nothing is unpacked.
"""

from __future__ import annotations

import time
from typing import Any, Final

import httpx

from farm_client.proxies import proxy_for

MAX_ERROR_BYTES: Final = 64 * 1024
"""So much of an error's body is read, and for so long; the rest is cut off."""
ERROR_SECONDS: Final = 5.0
IDENTITY: Final = {"Accept-Encoding": "identity"}
_PACKINGS: Final = frozenset({"content-encoding", "transfer-encoding"})


def client_options(url: str, headers: dict[str, str]) -> dict[str, Any]:
    """Return what an httpx client for a farm's address is made with. Raises: BadProxy."""
    encrypted = url.startswith("https:")  # without, loading the certificates would be for nothing
    return {
        "base_url": url,
        "headers": httpx.Headers(IDENTITY | headers, encoding="utf-8"),
        "trust_env": False,
        "proxy": proxy_for(url),
        "verify": httpx.create_ssl_context(trust_env=True) if encrypted else False,
    }


def read_answer(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Read a streamed answer: whole if it is a success, else its beginning. Raises: httpx.TransportError."""
    body = _Body(response, most_bytes)
    for chunk in [response.content] if response.is_stream_consumed else response.iter_raw():
        if body.add(chunk):
            break
    return body.answer()


async def read_answer_async(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Do as ``read_answer``, in an event loop."""
    body = _Body(response, most_bytes)
    if response.is_stream_consumed:
        body.add(response.content)
        return body.answer()
    async for chunk in response.aiter_raw():
        if body.add(chunk):
            break
    return body.answer()


class _Body:
    def __init__(self, response: httpx.Response, most_bytes: int) -> None:
        self._response = response
        self._most_bytes = most_bytes if response.is_success else MAX_ERROR_BYTES
        self._until = float("inf") if response.is_success else time.monotonic() + ERROR_SECONDS
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def add(self, chunk: bytes) -> bool:
        """Take a piece; return whether that is enough. Raises: httpx.ReadError where all of it is needed."""
        self._chunks.append(chunk)
        self._size_bytes += len(chunk)
        if self._size_bytes <= self._most_bytes:
            return time.monotonic() >= self._until
        if self._response.is_success:
            raise httpx.ReadError(f"the answer is longer than {self._most_bytes} bytes", request=self._response.request)
        return True

    def answer(self) -> httpx.Response:
        """Return an answer of its own with what was read: what came packed stays packed."""
        kept = [(name, value) for name, value in self._response.headers.items() if name.lower() not in _PACKINGS]
        content = b"".join(self._chunks)[: self._most_bytes]
        return httpx.Response(self._response.status_code, headers=kept, content=content, request=self._response.request)
