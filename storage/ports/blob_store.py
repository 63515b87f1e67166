"""The blob store: immutable bytes, each named by their digest.

Each sentence with a MUST is held to every implementation by ``tests/contract/test_blobs.py``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocol.tasks import BlobRef
from storage.blob_batch import BlobBatch, Chunk


@dataclass(frozen=True, slots=True)
class Collected:
    """What a garbage collection removed: files, and their bytes together."""

    count: int
    bytes: int

    def __add__(self, other: Collected) -> Collected:
        """Return what two collections removed together."""
        return Collected(self.count + other.count, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is kept, and when it was stored or last asked for (seconds since Unix time)."""

    digest: str
    size_bytes: int
    stored_at: float


class BlobStore(Protocol):
    """Keeps bytes, and gives them back by their digest: what is stored MUST come back whole, in any thread or task.

    A name that is no digest MUST reach nothing: it is answered as an absent blob is. An absent blob MUST be answered
    with NotFound, or with false. Methods that are not async block: call them in worker threads. Raises, out of any
    method that writes: Unavailable if the store is full, read-only or failing; nothing is left behind then.
    """

    def put_bytes(self, data: Chunk) -> BlobRef:
        """Store ``data``, durably on return; storing twice MUST be storing once, also by many at once."""

    def put_chunks(self, chunks: Iterable[Chunk]) -> BlobRef:
        """Store what the chunks are together; it is durable on return. Memory: no more than the chunks'."""

    def batch(self) -> AbstractContextManager[BlobBatch]:
        """Store several blobs at the price of one, all durable at the end. If the block raises it MUST store none."""

    def early_batch(self) -> AbstractContextManager[BlobBatch]:
        """Do as ``batch``; a blob MUST be readable from ``path`` once it is added, and not count as stored by then."""

    async def put_bytes_async(self, data: Chunk) -> BlobRef:
        """Do ``put_bytes`` in a worker thread."""

    async def put_stream(self, digest: str, chunks: AsyncIterator[bytes], max_bytes: int | None = None) -> BlobRef:
        """Store what comes in ``chunks`` as ``digest``; it is durable on return. Memory: one block, not the blob.

        A stream of other bytes, or over the limit, MUST be refused and leave nothing. The error of a broken stream
        MUST NOT be mistaken for the store's.

        Raises: DigestMismatch; BlobTooLarge beyond ``max_bytes``; NotFound if ``digest`` is none; what ``chunks`` does.
        """

    def adopt(self, path: Path, digest: str) -> None:
        """Take over a file that lies beside the store, synced, and whose bytes hash to ``digest``."""

    def path(self, digest: str) -> Path:
        """Return a local file of the blob, to be read only. Raises: NotFound."""

    def has(self, digest: str) -> bool:
        """Whether the blob is stored."""

    def renew(self, digest: str) -> bool:
        """Whether the blob is stored; if so it MUST count as just stored, so that no collection takes it for old.

        Ask this, not ``has``, where someone will rely on the answer before a record refers to the blob.
        """

    def size(self, digest: str) -> int:
        """Return the blob's size in bytes. Raises: NotFound."""

    def read(self, digest: str) -> bytes:
        """Return the blob's bytes, checked. Raises: NotFound; DigestMismatch: damaged bytes MUST NOT be given out."""

    async def read_async(self, digest: str) -> bytes:
        """Do ``read`` in a worker thread."""

    def verified(self, digest: str) -> Path:
        """Return the blob's file, once its bytes were found to hash to its name. Raises: NotFound; DigestMismatch."""

    def delete(self, digest: str) -> None:
        """Remove the blob, which MUST be possible to store again; an absent one is no error."""

    def drop_if_damaged(self, digest: str) -> bool:
        """Remove the blob if its bytes don't hash to its name, and MUST leave an intact one; true if it went."""

    def collect(
        self,
        referenced: Collection[str],
        older_than_seconds: float,
        now: float,
        among: Iterable[str] | None = None,
        *,
        dry_run: bool = False,
    ) -> Collected:
        """Remove blobs that are not ``referenced`` and were stored more than ``older_than_seconds`` before ``now``.

        It MUST leave what is referenced, what is younger (it may belong to a record that is not written yet), with
        ``among`` what is not named there, and in a ``dry_run`` everything. ``now`` is in seconds since Unix time.
        """

    def list_blobs(self) -> list[StoredBlob]:
        """Return all blobs; those MUST come first of which nobody has wanted anything for longest."""
