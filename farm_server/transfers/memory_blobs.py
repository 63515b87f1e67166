"""Blobs in memory: small ones that go with messages, and newest versions that are nowhere else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from protocol.assignments import Assign
from protocol.digests import digest_bytes
from protocol.limits import INLINE_BYTES
from protocol.tasks import BlobRef, WeightsDelta


class MemoryBlobs:
    """The most recently used small blobs, up to ``capacity_bytes``. On the event loop only."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._pinned: dict[str, tuple[str, Mapping[str, bytes]]] = {}

    def keep(self, data: bytes, digest: str | None = None) -> None:
        """Keep the bytes of a blob, unless it is too large for a message."""
        name = digest or digest_bytes(data)
        if len(data) > INLINE_BYTES or name in self._kept:
            return
        self._kept[name] = data
        self._kept_bytes += len(data)
        while self._kept_bytes > self._capacity_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])

    def pin(self, task_id: str, digest: str, blobs: Mapping[str, bytes]) -> None:
        """Keep the blobs of a task's newest version, which is nowhere else, until the next one or ``unpin``.

        ``digest`` is that of its weights.
        """
        self._pinned[task_id] = (digest, blobs)

    def unpin(self, task_id: str, digest: str | None = None) -> None:
        """The task's version of that digest is on the disk; None: any that it has is of no use."""
        pinned = self._pinned.get(task_id)
        if pinned is not None and digest in (None, pinned[0]):
            del self._pinned[task_id]

    def pinned(self, digest: str) -> bytes | None:
        """Return the bytes of a blob of a pinned version."""
        return next((blobs[digest] for _, blobs in self._pinned.values() if digest in blobs), None)

    def filled(self, assign: Assign, room_bytes: int = INLINE_BYTES) -> Assign:
        """Return the message with its deltas' bytes, or else its weights', and its inner state's, if they are here.

        Where there are deltas the weights stay out: who can't use the deltas fetches them. No more than
        ``room_bytes`` go in, of deltas the latest first: most clients hold a recent version.
        """
        if assign.deltas:
            deltas = self._filled(assign.deltas, room_bytes)
            room_bytes -= sum(delta.blob.size_bytes for delta in deltas if delta.blob.carried is not None)
            return self.with_state(assign.model_copy(update={"deltas": deltas}), room_bytes)
        weights = self._with_bytes(assign.weights) if assign.weights.size_bytes <= room_bytes else None
        if weights is None:
            return self.with_state(assign, room_bytes)
        return self.with_state(assign.model_copy(update={"weights": weights}), room_bytes - weights.size_bytes)

    def with_state(self, assign: Assign, room_bytes: int = INLINE_BYTES) -> Assign:
        """Return the message with its inner state's bytes alone: who it is for has the weights."""
        if assign.inner_state is None or assign.inner_state.size_bytes > room_bytes:
            return assign
        state = self._with_bytes(assign.inner_state)
        return assign if state is None else assign.model_copy(update={"inner_state": state})

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
