"""Bulk bytes over HTTP: downloads that resume where they were cut, uploads that are tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import httpx

from farm_client.agent.address import FarmAddress
from farm_client.agent.backoff import TRANSFER, RetryPolicy
from protocol.digests import new_hasher
from protocol.errors import DigestMismatch, FarmError, NotFound, Unauthorized, Unavailable

_CHUNK_BYTES: Final = 1024 * 1024
_TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
"""Of one read or write, not of a transfer."""

Meter = Callable[[int], None]
"""Hears the bytes that have come, or left, so far."""
Midway = Callable[[], Awaitable[bool]]


def ignore_bytes(_count: int) -> None:
    """Nobody waits for the bytes of this transfer."""


class _Interrupted(Exception):
    """A transfer ended early in a way that another try may mend."""


class Transfers:
    """The way to the farm's ``/v1/blobs``. Close it with ``aclose``."""

    def __init__(self, address: FarmAddress, retry: RetryPolicy = TRANSFER) -> None:
        encrypted = address.http_url.startswith("https:")  # without, loading the certificates would be for nothing
        self._client = httpx.AsyncClient(
            base_url=address.http_url, headers=address.headers, timeout=_TIMEOUT, verify=encrypted
        )
        self._retry = retry

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def download(self, digest: str, partial: Path, meter: Meter) -> int:
        """Fetch a blob into ``partial`` and return its size in bytes; a cut is resumed, damage is fetched anew.

        Raises: NotFound, Unauthorized, Unavailable when the tries are used up, DigestMismatch if the farm's copy is
            damaged, OSError for this machine's disk.
        """
        sink = _Sink(partial)
        try:
            await self._persist(lambda: self._download_on(digest, sink, meter), f"cannot fetch blob {digest[:12]}")
        finally:
            sink.close()
        return sink.size_bytes

    async def upload(
        self, digest: str, source: Path | bytes, meter: Meter = ignore_bytes, midway: Midway | None = None
    ) -> None:
        """Store a file, or bytes, at the farm under their digest; what is there already is not sent again.

        ``midway`` is asked when a part has left whether the connection is to be cut there.

        Raises: Unauthorized, Unavailable when the tries are used up, FarmError if the farm refuses the bytes; OSError.
        """
        await self._persist(lambda: self._upload_once(digest, source, meter, midway), f"cannot send blob {digest[:12]}")

    async def _persist(self, attempt: Callable[[], Awaitable[None]], failed: str) -> None:
        failures = 0
        while True:
            try:
                await attempt()
            except (httpx.TransportError, _Interrupted) as error:
                failures += 1
                if not self._retry.allows(failures):
                    reason = str(error) or type(error).__name__
                    raise Unavailable(f"{failed} after {failures} tries: {reason}") from error
                await asyncio.sleep(self._retry.delay_seconds(failures))
            else:
                return

    async def _download_on(self, digest: str, sink: _Sink, meter: Meter) -> None:
        headers = {"Accept-Encoding": "identity"}
        if sink.size_bytes:
            headers["Range"] = f"bytes={sink.size_bytes}-"
        async with self._client.stream("GET", f"/v1/blobs/{digest}", headers=headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                sink.restart()
                raise _Interrupted("the farm's copy is shorter than what came before")
            _check(response, digest)
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                sink.restart()
            await _pour(response, sink, meter)
        if sink.hexdigest() != digest:
            sink.restart()
            sink.damaged += 1
            if sink.damaged > 1:
                raise DigestMismatch(f"blob {digest[:12]} arrived damaged twice; the farm's copy must be bad")
            raise _Interrupted("it arrived damaged")

    async def _upload_once(self, digest: str, source: Path | bytes, meter: Meter, midway: Midway | None) -> None:
        known = await self._client.head(f"/v1/blobs/{digest}")
        if known.status_code == httpx.codes.OK:
            return
        if known.status_code != httpx.codes.NOT_FOUND:
            _check(known, digest)
        size_bytes = len(source) if isinstance(source, bytes) else (await asyncio.to_thread(source.stat)).st_size
        response = await self._client.put(
            f"/v1/blobs/{digest}",
            content=_metered(_chunks(source), meter, midway),
            headers={"Content-Length": str(size_bytes)},
        )
        _check(response, digest)


async def _pour(response: httpx.Response, sink: _Sink, meter: Meter) -> None:
    """Write the body in pieces that are worth a thread; what came before a cut is kept, so that no byte comes twice."""
    piece = bytearray()
    try:
        async for chunk in response.aiter_raw():
            piece += chunk
            if len(piece) >= _CHUNK_BYTES:
                full, piece = piece, bytearray()
                await asyncio.to_thread(sink.write, full)
                meter(sink.size_bytes)
    finally:
        sink.write(piece)
        meter(sink.size_bytes)


class _Sink:
    """A partial file and the hash of what is in it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hasher = new_hasher()
        self.size_bytes = 0
        self.damaged = 0

    def write(self, chunk: bytes | bytearray) -> None:
        self._file.write(chunk)
        self._hasher.update(chunk)
        self.size_bytes += len(chunk)

    def hexdigest(self) -> str:
        self._file.flush()
        return self._hasher.hexdigest()

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hasher = new_hasher()
        self.size_bytes = 0

    def close(self) -> None:
        self._file.close()


async def _chunks(source: Path | bytes) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


async def _metered(chunks: AsyncIterator[bytes], meter: Meter, midway: Midway | None) -> AsyncIterator[bytes]:
    sent_bytes = 0
    async for chunk in chunks:
        yield chunk
        sent_bytes += len(chunk)
        meter(sent_bytes)
        if midway is not None and await midway():
            raise _Interrupted("the connection was cut on purpose")


def _check(response: httpx.Response, digest: str) -> None:
    """Tell what another try may mend from what it cannot."""
    if response.is_success:
        return
    status = response.status_code
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise Unauthorized
    if status == httpx.codes.NOT_FOUND:
        raise NotFound(f"the farm has no blob {digest[:12]}; the task may have ended")
    if response.is_server_error or status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        raise _Interrupted(f"the farm answered {status}")
    raise FarmError(f"the farm refused blob {digest[:12]} with status {status}")
