"""Blobs in memory: small ones that go with messages, and newest versions that are nowhere else."""

from __future__ import annotations

from collections import OrderedDict

from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.messages import Assign
from protocol.tasks import BlobRef, WeightsDelta


class MemoryBlobs:
    """The most recently used small blobs, up to ``capacity_bytes``. On the event loop only."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._pinned: dict[str, tuple[str, bytes]] = {}

    def keep(self, data: bytes, digest: str | None = None) -> None:
        """Keep the bytes of a blob, unless it is too large for a message."""
        name = digest or digest_bytes(data)
        if len(data) > INLINE_BYTES or name in self._kept:
            return
        self._kept[name] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._capacity_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def pin(self, task_id: str, digest: str, data: bytes) -> None:
        """Keep a task's newest version, which is nowhere else, until the next one or ``unpin``."""
        self._pinned[task_id] = (digest, data)

    def unpin(self, task_id: str, digest: str | None = None) -> None:
        """The task's version of that digest is on the disk; None: any that it has is of no use."""
        pinned = self._pinned.get(task_id)
        if pinned is not None and digest in (None, pinned[0]):
            del self._pinned[task_id]

    def pinned(self, digest: str) -> bytes | None:
        """Return the bytes of a pinned version."""
        return next((data for name, data in self._pinned.values() if name == digest), None)

    def filled(self, assign: Assign, room_bytes: int = INLINE_BYTES) -> Assign:
        """Return the message with its deltas' bytes, or else its weights', as far as they are kept here.

        Where there are deltas the weights stay out: who can't use the deltas fetches them. No more than
        ``room_bytes`` go in, of deltas the latest first: most clients hold a recent version.
        """
        if assign.deltas:
            return assign.model_copy(update={"deltas": self._filled(assign.deltas, room_bytes)})
        weights = self._with_bytes(assign.weights) if assign.weights.size_bytes <= room_bytes else None
        return assign if weights is None else assign.model_copy(update={"weights": weights})

    def _filled(self, deltas: tuple[WeightsDelta, ...], room_bytes: int) -> tuple[WeightsDelta, ...]:
        filled: list[WeightsDelta] = []
        for delta in reversed(deltas):
            blob = self._with_bytes(delta.blob) if delta.blob.size_bytes <= room_bytes else None
            room_bytes -= blob.size_bytes if blob is not None else 0
            filled.append(delta if blob is None else delta.model_copy(update={"blob": blob}))
        return tuple(reversed(filled))

    def _with_bytes(self, ref: BlobRef) -> BlobRef | None:
        data = self.pinned(ref.digest)
        if data is None and (data := self._kept.get(ref.digest)) is not None:
            self._kept.move_to_end(ref.digest)
        if data is None:
            return None
        return BlobRef.carrying(data, ref.digest)
