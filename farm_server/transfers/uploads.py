"""Resumable uploads: who may send now, what is missing, and the bytes on their way to the store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog

from farm_server.environment.clock import Clock
from farm_server.environment.disk_space import DiskSpace
from farm_server.environment.settings import ServerSettings
from farm_server.observability.telemetry import Telemetry
from farm_server.transfers.upload_queue import UploadQueue
from farm_server.transfers.upload_views import upload_views
from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, Unavailable
from protocol.ranges import BadContentRange, ContentRange
from protocol.rest_uploads import UploadReply, UploadRequest, UploadState, UploadView
from protocol.wording import sized
from storage.errors import BlobTooLarge, NoUpload
from storage.part_writer import PartWriter
from storage.partial_blob import PartialBlob, name_of
from storage.ports.blob_store import BlobStore
from storage.ports.bus import Bus
from storage.uploads import UploadFolder
from storage.write_behind import WriteBehind

_TOPIC: Final = "#uploads"
"""Rung when a credit comes back. No task has such an id."""
_MISSING_SHOWN: Final = 256
_MOST_RANGES: Final = 1024
"""An upload that lies in more pieces than that is continued where a hole begins, and nowhere else."""
_MOST_UPLOADS: Final = 4096
"""Unfinished at once, however small."""
_NO_TURN_BYTES: Final = 1024 * 1024
"""A blob up to this size needs no turn: it is one request."""
_CHECK_SECONDS: Final = 0.2
"""How soon to ask again while all of a blob is here and being checked."""
_LOOK_SECONDS: Final = 1.0
"""How often an answer that is held back looks whether a credit was left idle."""
_WRITERS: Final = max(2, min(4, os.cpu_count() or 1))
"""Threads that write and hash. More than cores would only take turns."""
_EMPTY: Final = digest_bytes(b"")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """Where uploads go.

    ``refuses`` says why the farm takes nothing now, if so; ``make_room`` lets unused blobs give way to so many bytes.
    """

    folder: UploadFolder
    blobs: BlobStore
    disk_space: DiskSpace
    refuses: Callable[[], str | None]
    make_room: Callable[[int], Awaitable[None]]


class Uploads:
    """All uploads of one farm, but for those in one request. Use it from the event loop."""

    def __init__(
        self, target: UploadTarget, settings: ServerSettings, clock: Clock, bus: Bus, telemetry: Telemetry
    ) -> None:
        self._target = target
        self._folder = target.folder
        self._settings = settings
        self._clock = clock
        self._bus = bus
        self._queue = UploadQueue(
            settings.upload_credits, settings.upload_idle_seconds, least_bytes_per_second=_least_rate(settings)
        )
        target.disk_space.also_promised(self._outstanding_bytes)
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="upload")
        self._saved_bytes = telemetry.saved_bytes
        telemetry.watch_uploads(lambda: self.open_count, lambda: self.waiting_count)

    @property
    def open_count(self) -> int:
        """How many uploads hold a credit."""
        self._queue.expire(self._clock.now())
        return len(self._queue.held())

    @property
    def waiting_count(self) -> int:
        """How many uploads wait for a credit."""
        self._queue.expire(self._clock.now())
        return len(self._queue.waiting())

    async def ask(self, digest: str, request: UploadRequest, client: str) -> UploadReply:
        """Return what to do about a blob; an answer that would be ``wait`` is held back as the request allows.

        Raises: BlobTooLarge; Unavailable if the disk is full or the farm shuts down.
        """
        limit = self._settings.max_blob_bytes
        if request.size_bytes > limit:
            raise BlobTooLarge(f"the blob is larger than the {limit} bytes that are allowed; send a smaller one")
        if request.size_bytes == 0 and digest != _EMPTY:
            # it would be complete, and wrong, as soon as it was begun, over and over
            raise DigestMismatch(f"no bytes hash to {_EMPTY}, not to {digest}; send the blob's size")
        until = self._clock.now() + request.wait_seconds
        async with self._bus.subscribe(_TOPIC) as woken:
            while True:
                woken.clear()
                reply = await self._answer(digest, request.size_bytes, client)
                seconds = min(until - self._clock.now(), _LOOK_SECONDS)
                if reply.state is not UploadState.WAIT or seconds <= 0 or self._bus.closed:
                    return reply
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), seconds)

    async def receive(self, digest: str, part: ContentRange, chunks: AsyncIterator[bytes]) -> bool:
        """Keep a part's bytes as they come, whatever cuts it short; true if they were the last, and the blob is stored.

        Raises: NoUpload; BadContentRange; BlobTooLarge for a part; DigestMismatch: all of the upload is dropped then;
            Unavailable; whatever ``chunks`` raises.
        """
        partial = self._checked(digest, part)
        with PartWriter(partial) as writer:
            await self._pour(chunks, part, partial.name, WriteBehind(writer.write, part.start, self._threads))
        return partial.is_complete and await self._settle(partial)

    async def _pour(self, chunks: AsyncIterator[bytes], part: ContentRange, name: str, behind: WriteBehind) -> None:
        left_bytes = part.size_bytes
        try:
            async for chunk in chunks:
                self._queue.progress(name, self._clock.now(), len(chunk))
                await behind.put(chunk[:left_bytes])
                left_bytes -= len(chunk)
                if left_bytes < 0:
                    raise BadContentRange(f"the body has more than the {part.size_bytes} bytes of its Content-Range")
        finally:
            await behind.flush()

    def views(self) -> list[UploadView]:
        """Return every upload for people: those of which bytes are here, then those that only wait."""
        now = self._clock.now()
        self._queue.expire(now)
        return upload_views(self._folder.all(), self._queue, self._settings.upload_idle_seconds, now)

    async def collect(self) -> None:
        """Drop uploads that nobody continues: old ones, and where the disk is short all that rest."""
        is_short = self._target.disk_space.lacks() is not None
        await self._drop_idle(self._settings.upload_idle_seconds if is_short else self._settings.upload_grace_seconds)

    def forgive(self, seconds: float) -> None:
        """Count a time in which the server stood still as silence of no upload."""
        if seconds > 0:
            self._queue.forgive(seconds, self._clock.now())

    def close(self) -> None:
        """Wait for the threads. Blocks."""
        self._threads.shutdown()

    async def _answer(self, digest: str, size_bytes: int, client: str) -> UploadReply:
        partial = self._folder.find(digest, size_bytes)
        if await asyncio.to_thread(self._target.blobs.renew, digest):
            self._saved_bytes.labels("known").inc(size_bytes)
            if partial is not None:  # the blob came another way
                await asyncio.to_thread(self._folder.drop, partial)
            self._release(name_of(digest, size_bytes))
            return UploadReply(state=UploadState.STORED)
        if partial is None or not partial.is_complete:
            await self._make_room(size_bytes, partial)
            if (wait := self._queued(name_of(digest, size_bytes), size_bytes, client, partial)) is not None:
                return wait
            partial = await asyncio.to_thread(self._folder.open, digest, size_bytes)
        if partial.is_complete:
            return await self._answer_complete(partial, client)
        return UploadReply(
            state=UploadState.GO,
            missing=tuple(partial.missing()[:_MISSING_SHOWN]),
            part_bytes=self._settings.upload_part_bytes,
            parallel=self._settings.upload_parallel,
        )

    async def _answer_complete(self, partial: PartialBlob, client: str) -> UploadReply:
        """Finish what a restart or a full disk interrupted. If the bytes are wrong, they go: the upload begins anew."""
        try:
            settled = await self._settle(partial)
        except DigestMismatch as error:
            _log.warning("upload dropped", digest=partial.digest, error=error.message)
            return await self._answer(partial.digest, partial.size_bytes, client)
        if settled:
            return UploadReply(state=UploadState.STORED)
        reason = "all of it is here, and the server checks it"
        return UploadReply(state=UploadState.WAIT, reason=reason, retry_seconds=_CHECK_SECONDS)

    def _queued(self, name: str, size_bytes: int, client: str, partial: PartialBlob | None) -> UploadReply | None:
        """Return None if the upload may go on; small ones always may."""
        if size_bytes <= _NO_TURN_BYTES:
            return None
        goes_on = bool(self._queue.clients_of(name))
        turn = self._queue.ask(name, client, self._clock.now())
        if turn.value.granted:
            if partial is not None and not goes_on:
                self._saved_bytes.labels("resumed").inc(partial.received_bytes)
            return None
        return UploadReply(
            state=UploadState.WAIT,
            ahead=turn.value.ahead,
            reason=turn.reason,
            retry_seconds=turn.value.retry_seconds,
        )

    async def _make_room(self, size_bytes: int, partial: PartialBlob | None) -> None:
        """See that the rest of the blob has room, idle uploads giving way. Raises: Unavailable if it has none."""
        needed_bytes = size_bytes - (partial.received_bytes if partial is not None else 0)
        disk_space = self._target.disk_space
        if partial is not None and partial.name in self._queue.held():
            needed_bytes = 0  # it counts already
        await self._target.make_room(needed_bytes)
        if disk_space.lacks(needed_bytes) is not None or len(self._folder) >= _MOST_UPLOADS:
            await self._drop_idle(self._settings.upload_idle_seconds)
        if (reason := self._target.refuses()) is not None:
            raise Unavailable(reason)
        if (reason := disk_space.lacks(needed_bytes)) is not None:
            raise disk_space.refuse(reason)
        if partial is None and len(self._folder) >= _MOST_UPLOADS:
            raise Unavailable(f"{_MOST_UPLOADS} other uploads are not finished; try again when some are")

    def _outstanding_bytes(self) -> int:
        """Add up what is still to come of the uploads whose turn it is."""
        held = set(self._queue.held())
        return sum(p.size_bytes - p.received_bytes for p in self._folder.all() if p.name in held)

    async def _drop_idle(self, idle_seconds: float) -> None:
        dropped = await asyncio.to_thread(self._folder.collect, idle_seconds, time.time(), self._queue.held())
        if dropped.count:
            _log.info("idle uploads dropped", uploads=dropped.count, bytes=dropped.bytes)

    def _checked(self, digest: str, part: ContentRange) -> PartialBlob:
        """Return what the part belongs to, if it may be sent."""
        partial = self._folder.find(digest, part.total_bytes)
        if partial is None:
            raise NoUpload
        if part.total_bytes > _NO_TURN_BYTES and not self._queue.progress(partial.name, self._clock.now()):
            raise NoUpload
        if part.size_bytes > self._settings.upload_part_bytes:
            raise BlobTooLarge(f"a part has at most {sized(self._settings.upload_part_bytes)}; send smaller ones")
        holes = partial.missing()
        if len(holes) >= _MOST_RANGES and all(part.start != hole.start for hole in holes):
            raise BadContentRange("this upload lies in too many pieces; send what is missing, from where a hole begins")
        if (reason := self._target.refuses()) is not None:
            raise Unavailable(reason)
        return partial

    async def _settle(self, partial: PartialBlob) -> bool:
        """Make a blob of an upload that is complete; false if somebody else does it now. Raises: DigestMismatch."""
        try:
            return await asyncio.to_thread(self._folder.settle, partial)
        finally:
            if partial.is_gone:
                self._release(partial.name)

    def _release(self, name: str) -> None:
        self._queue.release(name)
        self._bus.publish([_TOPIC])


def _least_rate(settings: ServerSettings) -> float:
    """Return how many bytes a second an upload must bring to keep its turn: no more than the farm lets through."""
    shares = [
        rate / 2 for rate in (settings.client_upload_rate, settings.upload_rate / settings.upload_credits) if rate
    ]
    return min([settings.upload_least_rate, *shares])
