"""Updates that wait to be folded: in the blob store, or in memory as they came in their messages.

Two clients may send the same bytes: the last user deletes. An update that came compressed is folded from an unwrapped
copy. What came stays as long as the copy: a client that lost the connection before it heard of its success asks for it,
and need not send it again.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Protocol

import structlog

from protocol.digests import digest_bytes
from protocol.errors import DigestMismatch, FarmError
from protocol.tasks import BlobRef

_log = structlog.get_logger(__name__)


class Spool(Protocol):
    """The part of the blob store that finds and deletes."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""

    def delete(self, digest: str) -> object:
        """Delete a blob, if it is there."""


class SpooledUpdates:
    """Finds updates' bytes wherever they are, and counts who still needs those that are blobs. Safe on any thread."""

    def __init__(self, blobs: Spool) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._wrapped: dict[str, str] = {}

    def hold(self, update: BlobRef | None) -> None:
        """Note that a result brought this update."""
        if update is not None and update.carried is None:
            with self._lock:
                self._users[update.digest] += 1

    def source(self, update: BlobRef) -> bytes | Path:
        """Return the update's bytes, or the file that has them. Raises: NotFound."""
        return self._blobs.path(update.digest) if update.carried is None else update.carried

    def at_hand(self, update: BlobRef) -> bytes | None:
        """Return the bytes of an update that is in memory; None where it is a file, if it is here at all."""
        return update.carried

    def check(self, update: BlobRef) -> None:
        """See that an update is what its name says; a file was checked as it was stored. Raises: DigestMismatch."""
        data = update.carried
        if data is not None and (len(data) != update.size_bytes or digest_bytes(data) != update.digest):
            raise DigestMismatch(f"the update of {len(data)} bytes is not {update.digest[:12]}…; send it again")

    def unwrapped(self, wrapped: BlobRef, update: BlobRef) -> None:
        """Note that ``update`` is a copy of what came as ``wrapped``."""
        if wrapped.carried is None and update.carried is None:
            with self._lock:
                self._wrapped[update.digest] = wrapped.digest

    def discard(self, update: BlobRef) -> None:
        """Delete an unwrapped copy that is of no use, unless a result brought the same one before."""
        with self._lock:
            if update.carried is not None or self._users[update.digest]:
                return
        self._delete(update.digest)

    def release(self, update: BlobRef) -> None:
        """Note that one result's update is done with."""
        if update.carried is not None:
            return
        with self._lock:
            self._users[update.digest] -= 1
            if self._users[update.digest] > 0:
                return
            del self._users[update.digest]
            wrapped = self._wrapped.pop(update.digest, None)
            is_needed = wrapped is not None and self._users[wrapped] > 0
        self._delete(update.digest)
        if wrapped is not None and not is_needed:
            self._delete(wrapped)

    def _delete(self, digest: str) -> None:
        try:
            self._blobs.delete(digest)
        except (FarmError, OSError) as error:
            _log.warning("an update could not be deleted; it is collected later", error=str(error))
