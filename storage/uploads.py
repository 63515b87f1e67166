"""The blobs that are on their way into a store: one partial blob for each, whoever sends it, through restarts.

They live in ``<store>/uploads`` (``storage.partial_blob`` says how), on the disk of the blobs, so that a complete one
becomes a blob by a rename. One process owns the folder.
"""

from __future__ import annotations

import threading
from collections.abc import Container
from pathlib import Path
from typing import Final

from protocol.digests import is_digest
from protocol.errors import NotFound
from storage.errors import disk_errors
from storage.partial_blob import PartialBlob, name_of, parse_name
from storage.ports.blob_store import BlobStore, Collected

UPLOADS: Final = "uploads"


class UploadFolder:
    """The partial blobs of one store. Methods block; call them from any thread.

    Raises, out of any method: Unavailable if the disk is full, read-only or failing.
    """

    def __init__(self, root: Path, blobs: BlobStore) -> None:
        """Take up what a former process left in ``root``; what cannot be used is removed."""
        self._root = root
        self._blobs = blobs
        self._lock = threading.Lock()
        self._partials: dict[str, PartialBlob] = {}
        with disk_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in sorted({path.stem for path in root.iterdir()}):
                self._take_up(name)

    def _take_up(self, name: str) -> None:
        try:
            partial = PartialBlob.load(self._root, *parse_name(name))
        except ValueError:
            partial = None
        if partial is not None:
            self._partials[name] = partial
            return
        for path in self._root.glob(f"{name}.*"):
            path.unlink()

    def __len__(self) -> int:
        return len(self._partials)

    def all(self) -> list[PartialBlob]:
        """Return every partial blob, the oldest first; those that a restart left come before all others."""
        with self._lock:
            return list(self._partials.values())

    def find(self, digest: str, size_bytes: int) -> PartialBlob | None:
        """Return what is here of a blob of this size, or None if no upload of it was begun."""
        return self._partials.get(name_of(digest, size_bytes))

    def open(self, digest: str, size_bytes: int) -> PartialBlob:
        """Return what is here of a blob; begin it if nothing is. Raises: NotFound if ``digest`` is no digest."""
        if not is_digest(digest):
            raise NotFound(f"{digest[:80]!r} names no blob: a digest is 64 lowercase hexadecimal characters")
        with self._lock:
            partial = self.find(digest, size_bytes)
            if partial is None:
                partial = PartialBlob.create(self._root, digest, size_bytes)
                self._partials[partial.name] = partial
            return partial

    def settle(self, partial: PartialBlob) -> bool:
        """Make a blob of it, durably, if all of its bytes are here; false if not, or if somebody else does it now.

        Raises: DigestMismatch if they are not the blob's; then all of them are dropped.
        """
        try:
            settled = partial.settle(lambda path: self._blobs.adopt(path, partial.digest))
        finally:
            self._forget_gone(partial)
        return settled

    def drop(self, partial: PartialBlob) -> bool:
        """Remove what is here of it; false if it is being checked, or is gone already."""
        try:
            return partial.drop()
        finally:
            self._forget_gone(partial)

    def collect(self, idle_seconds: float, now: float, spared: Container[str] = ()) -> Collected:
        """Drop what got no byte for so long, but for the names that are ``spared``. ``now`` is in Unix seconds.

        The bytes of the answer are those that had been received.
        """
        idle = [p for p in self.all() if p.name not in spared and p.idle_seconds(now) > idle_seconds]
        dropped = [partial.received_bytes for partial in idle if self.drop(partial)]
        return Collected(len(dropped), sum(dropped))

    def _forget_gone(self, partial: PartialBlob) -> None:
        with self._lock:
            if partial.is_gone and self._partials.get(partial.name) is partial:
                del self._partials[partial.name]
