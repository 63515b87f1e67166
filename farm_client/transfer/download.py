"""Fetching a blob: in several ranges at once where it is large, from where an earlier try or run was cut."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import httpx

from farm_client.transfer.carrier import Carrier, Interrupted, Meter, check, ignore_bytes, in_parallel
from farm_client.transfer.partial_file import PartialFile
from protocol.errors import DigestMismatch
from protocol.ranges import ByteRange

PART_BYTES: Final = 8 * 1024 * 1024
"""What one request asks for; a smaller blob is one request."""
PARALLEL: Final = 4
_PIECE_BYTES: Final = 1024 * 1024
"""What is worth a thread's time."""


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
        headers = {"Accept-Encoding": "identity"}
        if part.size_bytes < self.partial.size_bytes:
            headers["Range"] = f"bytes={part.start}-{part.end - 1}"
        async with self.carrier.http.stream("GET", f"/v1/blobs/{self.digest}", headers=headers) as response:
            self._check_size(response)
            await check(response, self.digest)
            is_part = response.status_code == httpx.codes.PARTIAL_CONTENT
            await self._pour(response, ByteRange(part.start if is_part else 0, part.end))
        await asyncio.to_thread(self.partial.save)

    def _check_size(self, response: httpx.Response) -> None:
        """Refuse a copy of another size before anything of it is written."""
        status, size = response.status_code, None
        if status == httpx.codes.OK:
            size = response.headers.get("content-length")
        elif status in (httpx.codes.PARTIAL_CONTENT, httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE):
            size = response.headers.get("content-range", "").rpartition("/")[2]
        if size and size.isdecimal() and int(size) != self.partial.size_bytes:
            raise DigestMismatch(f"blob {self.digest[:12]} has {size} bytes and not {self.partial.size_bytes}")

    async def _pour(self, response: httpx.Response, part: ByteRange) -> None:
        """Write the body in pieces that are worth a thread; what came before a cut is kept: no byte comes twice."""
        at, piece = part.start, bytearray()
        try:
            async for chunk in response.aiter_raw():
                await self.carrier.download_rate.take(len(chunk))
                piece += chunk[: part.end - at - len(piece)]
                if len(piece) >= _PIECE_BYTES:
                    full, piece = piece, bytearray()
                    await self._keep(at, full)
                    at += len(full)
                if at + len(piece) >= part.end:
                    break
        finally:
            self.carrier.tally.received_bytes += len(piece)
            self._count_again(self.partial.write(at, piece))
        if at + len(piece) < part.end:
            raise Interrupted("the farm sent less than was asked for")

    async def _keep(self, at: int, piece: bytearray) -> None:
        """Write what has come; whoever cancels the download waits for that, so that it does not come again."""
        self.carrier.tally.received_bytes += len(piece)
        writing = asyncio.ensure_future(asyncio.to_thread(self.partial.write, at, piece))
        try:
            self._count_again(await asyncio.shield(writing))
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def _count_again(self, repeated_bytes: int) -> None:
        self.carrier.tally.received_again_bytes += repeated_bytes
        self.meter(self.partial.present_bytes)
