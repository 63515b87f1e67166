"""Small blobs kept in memory, to ride inside messages."""

from __future__ import annotations

from collections import OrderedDict

from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.messages import Assign
from protocol.tasks import BlobRef


class InlineBlobs:
    """The most recently used small blobs, up to ``capacity_bytes``. On the event loop only."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0

    def keep(self, data: bytes, digest: str | None = None) -> None:
        """Keep the bytes of a blob, unless it is too large to ride inline."""
        name = digest or digest_bytes(data)
        if len(data) > INLINE_BYTES or name in self._kept:
            return
        self._kept[name] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._capacity_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def filled(self, assign: Assign) -> Assign:
        """Return the message with its weights inline, if they are kept here."""
        data = self._kept.get(assign.weights.digest)
        if data is None:
            return assign
        self._kept.move_to_end(assign.weights.digest)
        weights = BlobRef.model_construct(digest=assign.weights.digest, size_bytes=len(data), inline=data)
        return assign.model_copy(update={"weights": weights})
