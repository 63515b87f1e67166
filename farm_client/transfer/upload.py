"""Storing a blob at the farm: in parts, several at once, from what the farm has of it, when its turn has come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import httpx
from pydantic import ValidationError

from farm_client.transfer.carrier import Carrier, Interrupted, Meter, check, ignore_bytes, in_parallel
from farm_client.transfer.source import Content, UploadSource, open_source
from protocol.errors import DigestMismatch, FarmError
from protocol.ranges import ByteRange, ByteRanges, ContentRange
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState
from protocol.retry import about

ONE_SHOT_BYTES: Final = 1024 * 1024
"""A blob up to this size is one request: it needs no turn, and a cut costs little."""
_PIECE_BYTES: Final = 1024 * 1024
_WAIT_SECONDS: Final = 10.0
"""How long the farm may hold its answer back while it is not this upload's turn."""
_MOST_PARALLEL: Final = 16
_MOST_RETRY_SECONDS: Final = 60.0
_LEAST_RETRY_SECONDS: Final = 0.01
_NOT_UNDERSTOOD: Final = (
    "the farm's answer to an upload is not one that this version understands; update one of the two"
)


def ignore_waiting(_reason: str | None) -> None:
    """Ignore the reason."""


@dataclass(frozen=True, slots=True)
class UploadListener:
    """Callbacks for the progress of an upload.

    ``meter``: how many bytes are at the farm, or on their way. ``waits``: why it waits, each time that the farm says
    so, and None when its turn has come.
    """

    meter: Meter = ignore_bytes
    waits: Callable[[str | None], None] = ignore_waiting


async def upload(carrier: Carrier, digest: str, content: Content, listener: UploadListener | None = None) -> bool:
    """Store a file, or bytes, at the farm under their digest; what is there already is not sent again.

    Returns whether there was anything to send.
    Raises: Unauthorized, Unavailable when the tries are used up, DigestMismatch if the bytes are not what their
        digest says, FarmError if the farm refuses them; OSError.
    """
    source = await asyncio.to_thread(open_source, content)
    try:
        work = _Upload(carrier, digest, source, listener or UploadListener())
        attempt = work.send_whole if source.size_bytes <= ONE_SHOT_BYTES else work.send_parts
        await carrier.persist(attempt, lambda: work.kept_bytes, f"cannot send blob {digest[:12]}")
        return work.has_sent
    finally:
        source.close()


@dataclass(slots=True)
class _Upload:
    carrier: Carrier
    digest: str
    source: UploadSource
    listener: UploadListener
    kept_bytes: int = 0
    """What the farm has, by its last word."""
    left_bytes: int = 0
    """What has left since then."""
    is_stored: bool = False
    has_sent: bool = False
    refusals: int = 0
    ever_sent: ByteRanges = field(default_factory=ByteRanges)

    async def send_whole(self) -> None:
        """Query whether the farm has it; if not, send it in one request."""
        known = await self.carrier.ask("HEAD", self._url)
        if known.is_success and known.headers.get("content-length", "0") == str(self.source.size_bytes):
            return
        if not known.is_success and known.status_code != httpx.codes.NOT_FOUND:
            await check(known, self.digest)
        self.left_bytes = 0
        await self._send("PUT", ByteRange(0, self.source.size_bytes), {})
        if not self.is_stored:
            raise Interrupted("the farm does not say that it has stored it")

    async def send_parts(self) -> None:
        """Query what the farm lacks, when it is this upload's turn, and send that."""
        reply = await self._turn()
        if reply.state is UploadState.STORED:
            return
        self.kept_bytes = self.source.size_bytes - sum(gap.size_bytes for gap in reply.missing)
        self.left_bytes = 0
        self.listener.meter(self.kept_bytes)
        parts = (part for gap in reply.missing for part in gap.parts(reply.part_bytes))
        await in_parallel(parts, min(reply.parallel, _MOST_PARALLEL), self._send_part)
        if not self.is_stored:
            raise Interrupted("the farm has all parts that it asked for, and needs others")

    async def _turn(self) -> UploadReply:
        """Poll until the answer is not to wait. The first answer comes at once: it may have a reason to show."""
        reply, has_waited = await self._ask(wait_seconds=0.0), False
        while reply.state is UploadState.WAIT:
            has_waited = True
            self.listener.waits(reply.reason or f"{reply.ahead} uploads are before it")
            await asyncio.sleep(about(_sane_seconds(reply.retry_seconds), self.carrier.draw()))
            reply = await self._ask(_WAIT_SECONDS)
        if has_waited:
            self.listener.waits(None)
        return reply

    async def _ask(self, wait_seconds: float) -> UploadReply:
        request = UploadRequest(size_bytes=self.source.size_bytes, wait_seconds=wait_seconds)
        response = await self.carrier.ask("POST", f"{self._url}/upload", json=request.model_dump(mode="json"))
        await check(response, self.digest)
        if not response.content.lstrip().startswith(b"{"):
            raise Interrupted("what answers in the farm's place answers with something else")
        try:
            reply = UploadReply.model_validate_json(response.content)
        except ValidationError as error:
            raise FarmError(_NOT_UNDERSTOOD) from error
        if reply.state is UploadState.GO and not self._makes_sense(reply):
            raise FarmError(_NOT_UNDERSTOOD)
        return reply

    def _makes_sense(self, reply: UploadReply) -> bool:
        size_bytes = self.source.size_bytes
        gaps = all(0 <= gap.start < gap.end <= size_bytes for gap in reply.missing)
        return gaps and min(reply.part_bytes, reply.parallel) >= 1

    async def _send_part(self, part: ByteRange) -> None:
        place = ContentRange(part.start, part.end, self.source.size_bytes)
        await self._send("PATCH", part, {"Content-Range": str(place)})

    async def _send(self, method: str, part: ByteRange, headers: dict[str, str]) -> None:
        self.has_sent = True
        headers["Content-Length"] = str(part.size_bytes)
        with self.carrier.upload_speed.moving():
            response = await self.carrier.ask(method, self._url, content=self._pieces(part), headers=headers)
        try:
            await check(response, self.digest)
        except DigestMismatch as error:
            self.refusals += 1
            if self.refusals > 1:
                raise
            raise Interrupted(f"it arrived damaged: {error.message}") from error
        self.is_stored = self.is_stored or response.status_code == httpx.codes.CREATED

    async def _pieces(self, part: ByteRange) -> AsyncIterator[bytes]:
        rate = self.carrier.upload_rate
        for piece in part.parts(rate.portion_bytes(_PIECE_BYTES)):
            await rate.take(piece.size_bytes)
            yield await asyncio.to_thread(self.source.read, piece.start, piece.size_bytes)
            self._count(piece)

    def _count(self, piece: ByteRange) -> None:
        before = self.ever_sent.total_bytes
        self.ever_sent.add(*piece)
        self.carrier.upload_speed.moved(piece.size_bytes)
        tally = self.carrier.tally
        tally.sent_bytes += piece.size_bytes
        tally.sent_again_bytes += piece.size_bytes - (self.ever_sent.total_bytes - before)
        self.left_bytes += piece.size_bytes
        self.listener.meter(self.kept_bytes + self.left_bytes)

    @property
    def _url(self) -> str:
        return f"/v1/blobs/{self.digest}"


def _sane_seconds(asked: float) -> float:
    """Return how long to wait before the next question; a farm may ask for anything, and for NaN."""
    return min(max(_LEAST_RETRY_SECONDS, asked), _MOST_RETRY_SECONDS)
