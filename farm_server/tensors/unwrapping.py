"""Takes the compression off updates, so that folding reads plain files at any place. Protocol: ``protocol.zstd``."""

from __future__ import annotations

import io
import threading
from contextlib import ExitStack
from pathlib import Path

import structlog

from farm_server.environment.disk_space import Claim
from farm_server.tensors.disk_retry import insist
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

    def is_wrapped(self, update: bytes | Path) -> bool:
        """Whether the update, in memory or in a file, is compressed."""
        if isinstance(update, bytes):
            return is_wrapped(update)
        with disk_errors(update.parent), update.open("rb", buffering=0) as file:
            return is_wrapped(file.read(len(MAGIC)))

    def plain(self, update: bytes | Path, limit_bytes: int) -> BlobRef:
        """Return what is inside a compressed update: in memory if it came so and must be small, else as a blob.

        ``limit_bytes``: the largest that it can be. Raises: MalformedTensors as ``protocol.zstd.unwrap`` does;
            Unavailable if the server stops while the disk has no room.
        """
        if isinstance(update, bytes) and limit_bytes <= INLINE_BYTES:
            return BlobRef.carrying(unwrap_bytes(update, limit_bytes))
        name = update.name if isinstance(update, Path) else f"{len(update)} bytes in memory"
        return insist(
            lambda: self._spool(update, limit_bytes),
            lambda why: _log.warning("an update waits for the disk", update=name, reason=why),
            self._closed.is_set,
            self._retry,
        )

    def _spool(self, update: bytes | Path, limit_bytes: int) -> BlobRef:
        self._claim(limit_bytes)
        with ExitStack() as stack:
            new = stack.enter_context(stack.enter_context(self._blobs.batch()).file())
            source = stack.enter_context(io.BytesIO(update) if isinstance(update, bytes) else update.open("rb"))
            unwrap(source, new, limit_bytes)
        return new.ref
