"""Bulk bytes between a request and the farm: counted, within the bandwidth limits, and timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from farm_server.observability.telemetry import Telemetry
from farm_server.transfers.bandwidth import Bandwidth
from protocol.errors import Unavailable

_SILENCE_SECONDS: Final = 60.0
"""A body that does not go on for so long is given up."""
_READ_BYTES: Final = 1024 * 1024
_FEWEST_READ_BYTES: Final = 64 * 1024
_READ_BY_ALL_BYTES: Final = 8 * _READ_BYTES
"""What all downloads together may hold in memory, or thereabouts: the more there are, the less each reads at once."""
_PATHSEND: Final = "http.response.pathsend"


def read_at_once_bytes(downloads: int) -> int:
    """Return how much each of so many downloads reads at once."""
    return max(_FEWEST_READ_BYTES, min(_READ_BYTES, _READ_BY_ALL_BYTES // downloads))


class Traffic:
    """The limits and the counters of bulk, in both directions. ``upload``: towards the farm."""

    def __init__(self, upload: Bandwidth, download: Bandwidth, telemetry: Telemetry) -> None:
        self.upload = upload
        self.download = download
        self.received_bytes = telemetry.blob_bytes.labels("in")
        self.sent_bytes = telemetry.blob_bytes.labels("out")


@asynccontextmanager
async def incoming(request: Request, traffic: Traffic, client: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the body in chunks as it comes, paced for ``client``.

    Raises: Unavailable, out of the block, if it is cut or does not go on.
    """
    try:
        async with asyncio.timeout(None) as silence:
            yield _chunks(request, traffic, client, silence)
    except TimeoutError:
        if not silence.expired():
            raise
        raise Unavailable(f"no byte came for {_SILENCE_SECONDS:g} seconds; ask what is missing and go on") from None
    except ClientDisconnect:
        raise Unavailable("the connection was cut; ask what is missing and go on") from None


async def _chunks(request: Request, traffic: Traffic, client: str, silence: asyncio.Timeout) -> AsyncIterator[bytes]:
    loop, body = asyncio.get_running_loop(), request.stream()
    while True:
        silence.reschedule(loop.time() + _SILENCE_SECONDS)
        chunk = await anext(body, None)
        silence.reschedule(None)  # whoever takes the bytes may take their time
        if chunk is None:
            return
        traffic.received_bytes.inc(len(chunk))
        async for piece in traffic.upload.pace(client, chunk):
            yield piece


class BulkFile(FileResponse):
    """A file response that counts what it sends, ranges as ranges, and keeps to the limits.

    Where the server can send files by itself (``http.response.pathsend``) and nothing limits it, it does.
    """

    def __init__(self, path: str, traffic: Traffic, client: str, headers: dict[str, str]) -> None:
        super().__init__(path, headers=headers, media_type="application/octet-stream")
        self._bandwidth = traffic.download
        self._client = client
        self._sent_bytes = traffic.sent_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as any file response."""

        async def counting(message: Message) -> None:
            if message["type"] == _PATHSEND:
                self._sent_bytes.inc(int(self.headers["content-length"]))
                await send(message)
            elif message["type"] == "http.response.body" and message.get("body"):
                await self._send_paced(message, send)
            else:
                await send(message)

        if self._bandwidth.is_limited:
            others = {name: value for name, value in scope.get("extensions", {}).items() if name != _PATHSEND}
            scope = {**scope, "extensions": others}
        with self._bandwidth.in_use() as users:
            self.chunk_size = read_at_once_bytes(users)
            await super().__call__(scope, receive, counting)

    async def _send_paced(self, message: Message, send: Send) -> None:
        """Send a body in the pieces that the limits allow; the last one is the message's own end."""
        left_bytes = len(message["body"])
        async for piece in self._bandwidth.pace(self._client, message["body"]):
            left_bytes -= len(piece)
            await send({**message, "body": piece, "more_body": left_bytes > 0 or message.get("more_body", False)})
            self._sent_bytes.inc(len(piece))
