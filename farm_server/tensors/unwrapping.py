"""Takes the compression off updates, so that folding reads plain files at any place. Protocol: ``protocol.zstd``."""

from __future__ import annotations

import io
import threading

import structlog

from farm_server.environment.disk_space import Claim
from farm_server.tensors.disk_retry import insist
from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.retry import RetryPolicy
from protocol.tasks import BlobRef
from protocol.zstd import MAGIC, is_wrapped, unwrap, unwrap_bytes
from storage.errors import DISK_RETRY, disk_errors
from storage.ports.blob_store import BlobStore

_log = structlog.get_logger(__name__)


class Unwrapper:
    """``plain`` blocks: call it in worker threads. While the disk has no room it waits: the client's work is done."""

    def __init__(self, blobs: BlobStore, claim: Claim, retry: RetryPolicy = DISK_RETRY) -> None:
        self._blobs = blobs
        self._claim = claim
        self._retry = retry
        self._closed = threading.Event()

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed.set()

    def is_wrapped(self, update: BlobRef) -> bool:
        """Whether the update is compressed. Raises: NotFound if it was never uploaded."""
        if update.inline is not None:
            return is_wrapped(update.inline)
        path = self._blobs.path(update.digest)
        with disk_errors(path.parent), path.open("rb", buffering=0) as file:
            return is_wrapped(file.read(len(MAGIC)))

    def plain(self, update: BlobRef, limit_bytes: int) -> BlobRef:
        """Return what is inside a compressed update: in memory if it must be small, else as a blob of its own.

        ``limit_bytes``: the largest that it can be. Raises: MalformedTensors as ``protocol.zstd.unwrap`` does;
            Unavailable if the server stops while the disk has no room.
        """
        if update.inline is not None and limit_bytes <= INLINE_BYTES:
            data = unwrap_bytes(update.inline, limit_bytes)
            return BlobRef(digest=digest_bytes(data), size_bytes=len(data), inline=data)
        return insist(
            lambda: self._spool(update, limit_bytes),
            lambda why: _log.warning("an update waits for the disk", update=update.digest, reason=why),
            self._closed.is_set,
            self._retry,
        )

    def _spool(self, update: BlobRef, limit_bytes: int) -> BlobRef:
        self._claim(limit_bytes)
        with self._blobs.batch() as batch, batch.file() as new:
            if update.inline is not None:
                unwrap(io.BytesIO(update.inline), new, limit_bytes)
            else:
                with self._blobs.path(update.digest).open("rb") as source:
                    unwrap(source, new, limit_bytes)
        return new.ref
