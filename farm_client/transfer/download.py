"""Fetching a blob: in several ranges at once where it is large, from where an earlier try or run was cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import httpx

from farm_client.transfer.answers import IDENTITY, MAX_ERROR_BYTES, read_answer
from farm_client.transfer.bulk_transport import SHUTDOWN
from farm_client.transfer.carrier import Carrier, Interrupted, Meter, check, ignore_bytes, in_parallel
from farm_client.transfer.partial_file import PartialFile
from farm_client.transfer.threads import in_thread
from protocol.errors import DigestMismatch
from protocol.ranges import ByteRange

PART_BYTES: Final = 8 * 1024 * 1024
"""What one request asks for; a smaller blob is one request."""
PARALLEL: Final = 4
_BLOB_TYPE: Final = "application/octet-stream"
_SHOWN_CHARS: Final = 60
_COUNTED_AT_ONCE_BYTES: Final = 1024 * 1024
_COUNTED_EVERY_SECONDS: Final = 0.2
"""How often the event loop hears of what came: whichever is sooner."""


async def download(carrier: Carrier, digest: str, partial: PartialFile, meter: Meter = ignore_bytes) -> None:
    """Fetch what is missing of a blob; on return the file is whole, checked, and closed.

    A cut is resumed; damage is fetched anew, once. Whatever else ends it early, what came is kept for another try.
    Raises: NotFound, Unauthorized, Unavailable when the tries are used up, OSError for this machine's disk,
        DigestMismatch if the farm's copy is damaged or of another size: nothing of it is kept.
    """
    try:
        await _Download(carrier, digest, partial, meter).fetch()
    except DigestMismatch:
        partial.restart()
        raise
    finally:
        partial.close()


@dataclass(frozen=True, slots=True)
class _Download:
    carrier: Carrier
    digest: str
    partial: PartialFile
    meter: Meter

    async def fetch(self) -> None:
        failed = f"cannot fetch blob {self.digest[:12]}"
        for _ in range(2):
            await self.carrier.persist(self._fetch_missing, lambda: self.partial.present_bytes, failed)
            if await asyncio.to_thread(self.partial.hexdigest) == self.digest:
                self.partial.finish()
                return
            self.partial.restart()
        raise DigestMismatch(f"blob {self.digest[:12]} arrived damaged twice; the farm's copy must be bad")

    async def _fetch_missing(self) -> None:
        parts = [part for gap in self.partial.missing() for part in gap.parts(PART_BYTES)]
        await in_parallel(parts, PARALLEL, self._fetch_part)

    async def _fetch_part(self, part: ByteRange) -> None:
        request = _PartRequest(self, part, asyncio.get_running_loop())
        with self.carrier.download_speed.moving():
            response = await in_thread(request.fetch, request.stop)
        await check(response, self.digest)

    def count(self, received_bytes: int, repeated_bytes: int) -> None:
        """Count what came."""
        self.carrier.download_speed.moved(received_bytes)
        self.carrier.tally.received_bytes += received_bytes
        self.carrier.tally.received_again_bytes += repeated_bytes
        self.meter(self.partial.present_bytes)


class _PartRequest:
    """One request, made by a thread: each piece of its body is written as soon as it is here, and none comes twice."""

    def __init__(self, download: _Download, part: ByteRange, loop: asyncio.AbstractEventLoop) -> None:
        self._download = download
        self._part = part
        self._loop = loop
        self._stopped = False
        self._shutdown: Callable[[], None] | None = None
        self._uncounted_bytes = self._uncounted_repeated_bytes = 0
        self._count_due = 0.0

    def stop(self) -> None:
        """Have the thread end soon."""
        self._stopped = True
        if self._shutdown is not None:
            self._shutdown()

    def fetch(self) -> httpx.Response:
        """Write the body into the file; return the response, of which another one than a success has been read."""
        carrier, partial, digest = self._download.carrier, self._download.partial, self._download.digest
        headers = dict(IDENTITY)
        if self._part.size_bytes < partial.size_bytes:
            headers["Range"] = f"bytes={self._part.start}-{self._part.end - 1}"
        with carrier.bulk.stream("GET", f"/v1/blobs/{digest}", headers=headers) as response:
            self._shutdown = response.extensions.get(SHUTDOWN)
            self._check_size(response)
            if not response.is_success:
                return read_answer(response, MAX_ERROR_BYTES)
            is_part = response.status_code == httpx.codes.PARTIAL_CONTENT
            self._pour(response, self._part.start if is_part else 0)
        partial.save()
        return response

    def _check_size(self, response: httpx.Response) -> None:
        """Refuse a copy of another size, and what is no blob, before anything of it is written."""
        kind = response.headers.get("content-type", _BLOB_TYPE)
        if response.is_success and not kind.startswith(_BLOB_TYPE):
            raise Interrupted(f"what answers in the farm's place gives {kind[:_SHOWN_CHARS]!a}")
        status, size, wanted_bytes = response.status_code, None, self._download.partial.size_bytes
        if status == httpx.codes.OK:
            size = response.headers.get("content-length")
        elif status in (httpx.codes.PARTIAL_CONTENT, httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE):
            size = response.headers.get("content-range", "").rpartition("/")[2]
        if size and size.isdecimal() and int(size) != wanted_bytes:
            raise DigestMismatch(f"blob {self._download.digest[:12]} has {size} bytes and not {wanted_bytes}")

    def _pour(self, response: httpx.Response, start: int) -> None:
        at, end = start, self._part.end
        try:
            for chunk in response.iter_raw():
                for piece in self._paced(chunk[: end - at]):
                    self._uncounted_repeated_bytes += self._download.partial.write(at, piece)
                    self._uncounted_bytes += len(piece)
                    at += len(piece)
                    if self._uncounted_bytes >= _COUNTED_AT_ONCE_BYTES or time.monotonic() >= self._count_due:
                        self._count()
                if self._stopped or at >= end:
                    break
        finally:
            self._count()
        if at < end:
            raise Interrupted("the farm sent less than was asked for")

    def _paced(self, chunk: bytes) -> Iterator[bytes]:
        """Give the chunk back in pieces, each when the rate allows it; all of it at once if nobody waits any more."""
        rate = self._download.carrier.download_rate
        portion_bytes = max(1, rate.portion_bytes(len(chunk)))
        for start in range(0, len(chunk), portion_bytes):
            piece = chunk[start : start + portion_bytes]
            if rate.is_limited and not self._stopped:
                asyncio.run_coroutine_threadsafe(rate.take(len(piece)), self._loop).result()
            yield piece

    def _count(self) -> None:
        """Report to the event loop what came, before ``fetch`` returns."""
        if self._uncounted_bytes:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                told = self._uncounted_bytes, self._uncounted_repeated_bytes
                self._loop.call_soon_threadsafe(self._download.count, *told)
            self._uncounted_bytes = self._uncounted_repeated_bytes = 0
            self._count_due = time.monotonic() + _COUNTED_EVERY_SECONDS
