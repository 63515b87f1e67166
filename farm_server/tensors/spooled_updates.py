"""Updates in the blob store that wait to be folded. Two clients may send the same bytes: the last user deletes.

An update that came compressed is folded from an unwrapped copy. What came stays as long as the copy: a client that lost
the connection before it heard of its success asks for it, and need not send it again.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Protocol

import structlog

from protocol.errors import FarmError
from protocol.tasks import BlobRef

_log = structlog.get_logger(__name__)


class Spool(Protocol):
    """The part of the blob store that finds and deletes."""

    def path(self, digest: str) -> Path:
        """Return the blob's file. Raises: NotFound."""

    def delete(self, digest: str) -> object:
        """Delete a blob, if it is there."""


class SpooledUpdates:
    """Counts who still needs each spooled update. Safe on any thread. Inline updates pass through untouched."""

    def __init__(self, blobs: Spool) -> None:
        self._blobs = blobs
        self._lock = threading.Lock()
        self._users: Counter[str] = Counter()
        self._wrapped: dict[str, str] = {}

    def hold(self, update: BlobRef | None) -> None:
        """Note that a result brought this update."""
        if update is not None and update.inline is None:
            with self._lock:
                self._users[update.digest] += 1

    def source(self, update: BlobRef) -> bytes | Path:
        """Return the update's bytes, or the file that has them. Raises: NotFound."""
        return self._blobs.path(update.digest) if update.inline is None else update.inline

    def unwrapped(self, wrapped: BlobRef, update: BlobRef) -> None:
        """Note that ``update`` is a copy of what came as ``wrapped``."""
        if wrapped.inline is None and update.inline is None:
            with self._lock:
                self._wrapped[update.digest] = wrapped.digest

    def discard(self, update: BlobRef) -> None:
        """Delete an unwrapped copy that is of no use, unless a result brought the same one before."""
        with self._lock:
            if update.inline is not None or self._users[update.digest]:
                return
        self._delete(update.digest)

    def release(self, update: BlobRef) -> None:
        """Note that one result's update is done with."""
        if update.inline is not None:
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
