"""Immutable bytes in a folder, each file named by its digest.

    <root>/ab/ab12...   a blob: 64 hexadecimal characters, in the folder of the first two
    <root>/tmp/         bytes on their way in; whatever a crash left there is removed when the store is opened

A blob gets its name only when its bytes are on the disk and hash to it, so a file with a name is whole. One process
owns the folder; any number of its threads and tasks may use it at once.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from protocol.digests import digest_bytes, is_digest
from protocol.errors import DigestMismatch, NotFound
from protocol.tasks import BlobRef
from storage.blob_batch import BlobBatch, Chunk, EarlyFiles
from storage.errors import disk_errors
from storage.file_digest import digest_of_file
from storage.owner import read_owner
from storage.ports.blob_store import Collected, StoredBlob
from storage.spool import spool

_TEMPORARY: Final = "tmp"
_SYNCS_AT_ONCE: Final = 4
T = TypeVar("T")


class FolderBlobStore:
    """Content-addressed blobs in a local folder. Methods that are not async block: call them in worker threads.

    Raises, out of any method that writes: Unavailable if the disk is full, read-only or failing; nothing is left
    behind then.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / _TEMPORARY
        self._syncing = ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="blob-sync")
        self._early = EarlyFiles()
        self._naming = threading.Lock()
        """Held while a file gets its name or loses it, so that no collection removes what was just stored again."""
        with disk_errors(self._root):
            self._incoming.mkdir(parents=True, exist_ok=True)
            _sync_folder(root.parent)
            _sync_folder(root)
            leftovers = list(self._incoming.iterdir())
            self.leftovers = sum(leftover.stat().st_nlink == 1 for leftover in leftovers)  # the others have names
            for leftover in leftovers:
                leftover.unlink()
        """Files that a crash left half-written, removed now."""

    def put_bytes(self, data: bytes | bytearray | memoryview) -> BlobRef:
        """Store ``data``; it is durable on return. Bytes that are stored already are not written again."""
        ref = ref_of(data)
        return ref if self._renew(ref) else self.put_chunks([data])

    def put_chunks(self, chunks: Iterable[Chunk]) -> BlobRef:
        """Store what the chunks are together; it is durable on return. Memory: no more than the chunks'."""
        with self.batch() as batch:
            return batch.add(chunks)

    def batch(self) -> AbstractContextManager[BlobBatch]:
        """Store several blobs at the price of one: the disk syncs them together. All are durable at the end.

        They get their names in the order in which they were added; which of the names a crash leaves is not said.
        If the block raises, none is stored.
        """
        return self._batch(early=False)

    def early_batch(self) -> AbstractContextManager[BlobBatch]:
        """Do as ``batch``; beyond that each blob can be read from ``path`` as soon as it is added to the batch.

        It is not stored before the end: ``has`` is false until then, and after a crash it is not there. The block may
        end in another thread than it began in.
        """
        return self._batch(early=True)

    @contextmanager
    def _batch(self, *, early: bool) -> Iterator[BlobBatch]:
        kept: set[Path] = set()
        with ExitStack() as stack, disk_errors(self._root):

            def new_file() -> Path:
                return stack.enter_context(self._temporary(kept))

            batch = BlobBatch(new_file, self._renew, self._syncing, self._early.add if early else None)
            stack.callback(lambda: self._early.drop(batch.files))
            try:
                yield batch
            finally:
                files = batch.synced()
            for temporary, ref in files.items():
                (self._link if early else self._rename)(temporary, ref.digest)
            self._at_once(_sync_folder, sorted({self._place(ref.digest).parent for ref in files.values()}))
            if early:
                kept.update(files)
                self._early.retire(files)

    def _at_once(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Do it to all, in threads where there are several: each waits for the disk, and for the same disk."""
        if len(items) == 1:
            work(items[0])
        else:
            list(self._syncing.map(work, items))

    async def put_bytes_async(self, data: bytes | bytearray | memoryview) -> BlobRef:
        """Do ``put_bytes`` in a worker thread."""
        return await asyncio.to_thread(self.put_bytes, data)

    async def put_stream(self, digest: str, chunks: AsyncIterator[bytes], max_bytes: int | None = None) -> BlobRef:
        """Store what comes in ``chunks`` as ``digest``; it is durable on return. Memory: one block, not the blob.

        Raises: DigestMismatch if the bytes hash to another name; BlobTooLarge beyond ``max_bytes``; NotFound if
            ``digest`` is no digest; whatever ``chunks`` raises. Nothing is kept then.
        """
        self._place(digest)
        with self._temporary() as temporary:
            spooled = await spool(temporary, chunks, max_bytes)
            if spooled.digest != digest:
                raise DigestMismatch(f"the bytes hash to {spooled.digest}, not to {digest}; upload them again")
            await asyncio.to_thread(self._name, temporary, digest)
        return spooled

    def adopt(self, path: Path, digest: str) -> None:
        """Give a file on the store's disk, durably, the name that its bytes, which are synced, hash to."""
        with disk_errors(self._root):
            os.utime(path)  # it counts as just stored
        self._name(path, digest)

    def path(self, digest: str) -> Path:
        """Return the file of a blob, to be read only: of one in an ``early_batch`` too. Raises: NotFound."""
        path = self._place(digest)
        if path.is_file():
            return path
        early = self._early.find(digest)
        if early is not None:
            return early
        if path.is_file():  # it got its name in between
            return path
        raise NotFound(f"blob {digest} is not stored here; upload it first")

    def has(self, digest: str) -> bool:
        """Whether the blob is stored; false for a name that is no digest."""
        return is_digest(digest) and self._place(digest).is_file()

    def renew(self, digest: str) -> bool:
        """Whether the blob is stored; if so it counts as just stored, so that no collection takes it for old.

        Ask this, not ``has``, where someone will rely on the answer before a record refers to the blob.
        """
        return self.has(digest) and self._renew(BlobRef(digest=digest, size_bytes=self.size(digest)))

    def size(self, digest: str) -> int:
        """Return the blob's size in bytes. Raises: NotFound."""
        return self.path(digest).stat().st_size

    def read(self, digest: str) -> bytes:
        """Return the blob's bytes, checked. Raises: NotFound; DigestMismatch if they were damaged on the disk."""
        path = self.path(digest)
        with disk_errors(self._root):
            data = path.read_bytes()
        if digest_bytes(data) != digest:
            raise _damaged(path)
        return data

    async def read_async(self, digest: str) -> bytes:
        """Do ``read`` in a worker thread."""
        return await asyncio.to_thread(self.read, digest)

    def verified(self, digest: str) -> Path:
        """Return the blob's file, once its bytes were found to hash to its name. Memory: one block, not the blob.

        Raises: NotFound; DigestMismatch if they were damaged on the disk.
        """
        path = self.path(digest)
        with disk_errors(self._root):
            intact = digest_of_file(path) == digest
        if not intact:
            raise _damaged(path)
        return path

    def delete(self, digest: str) -> None:
        """Remove the blob; one that is not stored is no error."""
        if is_digest(digest):
            with disk_errors(self._root):
                self._place(digest).unlink(missing_ok=True)

    def drop_if_damaged(self, digest: str) -> bool:
        """Remove the blob if its bytes don't hash to its name, so that it can be stored again; true if so."""
        if not self.has(digest):
            return False
        with disk_errors(self._root):
            try:
                return self._drop_if_damaged(self._place(digest), digest)
            except FileNotFoundError:  # it was removed meanwhile
                return False

    def _drop_if_damaged(self, path: Path, digest: str) -> bool:
        with path.open("rb") as read:  # kept open: no other file can have its inode meanwhile
            if digest_of_file(path) == digest:
                return False
            with self._naming:
                if path.stat().st_ino != os.fstat(read.fileno()).st_ino:  # it was stored again meanwhile
                    return False
                path.unlink()
                return True

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

        A young blob may belong to a record that is not written yet; one that a lost ledger may refer to is spared
        (``storage.owner``). ``now`` is in seconds since Unix time. With ``among`` only blobs of these names are
        looked at; a ``dry_run`` removes none.
        """
        owner = read_owner(self._root)

        def goes(stored_at: float) -> bool:
            is_spared = owner is not None and owner.spares(stored_at, now)
            return stored_at < now - older_than_seconds and not is_spared

        digests = [path.name for path in self._root.glob("[0-9a-f][0-9a-f]/*")] if among is None else among
        removed = [
            size_bytes
            for digest in digests
            if digest not in referenced and (size_bytes := self._remove_old(digest, goes, dry_run=dry_run)) is not None
        ]
        return Collected(len(removed), sum(removed))

    def list_blobs(self) -> list[StoredBlob]:
        """Return all blobs, those first of which nobody has wanted anything for longest. Raises: Unavailable."""
        found = []
        with disk_errors(self._root):
            for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
                with suppress(FileNotFoundError):  # it was removed a moment ago
                    status = path.stat()
                    found.append(StoredBlob(path.name, status.st_size, status.st_mtime))
        return sorted(found, key=lambda blob: blob.stored_at)

    def _remove_old(self, digest: str, goes: Callable[[float], bool], *, dry_run: bool) -> int | None:
        """Remove the blob if one stored at its time ``goes``; return its size in bytes if so."""
        if not self.has(digest):
            return None
        path = self._place(digest)
        with disk_errors(self._root), self._naming:
            status = path.stat() if path.exists() else None
            if status is None or not goes(status.st_mtime):
                return None
            if not dry_run:
                path.unlink()
            return status.st_size

    def _place(self, digest: str) -> Path:
        if not is_digest(digest):
            raise NotFound(f"{digest[:80]!r} names no blob: a digest is 64 lowercase hexadecimal characters")
        return self._root / digest[:2] / digest

    def _renew(self, ref: BlobRef) -> bool:
        """Make a stored blob young again; false if it is absent, or not of the size that its bytes must have."""
        path = self._place(ref.digest)
        with disk_errors(self._root), self._naming:
            if not path.is_file() or path.stat().st_size != ref.size_bytes:
                return False
            os.utime(path)
        _sync_folder(path.parent)  # the writer that named it may not have come to that yet
        return True

    def _name(self, temporary: Path, digest: str) -> None:
        """Give a synced file its name, durably. A blob of that name holds the same bytes: replacing it is harmless."""
        with disk_errors(self._root):
            self._rename(temporary, digest)
            _sync_folder(self._place(digest).parent)

    def _rename(self, temporary: Path, digest: str) -> None:
        path = self._made_place(digest)
        with self._naming:
            temporary.replace(path)

    def _link(self, temporary: Path, digest: str) -> None:
        """Give a file its name beside the temporary one, which readers may have found; where links can be made."""
        path = self._made_place(digest)
        with self._naming, suppress(OSError):
            path.hardlink_to(temporary)
            return
        self._rename(temporary, digest)

    def _made_place(self, digest: str) -> Path:
        path = self._place(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            _sync_folder(self._root)
        return path

    @contextmanager
    def _temporary(self, kept: Collection[Path] = ()) -> Iterator[Path]:
        """Make an empty file for bytes on their way in; remove it unless it was given a name, or is one of ``kept``."""
        with disk_errors(self._root):
            handle, name = tempfile.mkstemp(dir=self._incoming)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            if Path(name) not in kept:
                Path(name).unlink(missing_ok=True)


def ref_of(data: bytes | bytearray | memoryview) -> BlobRef:
    """Return the name and size that the bytes have as a blob."""
    return BlobRef(digest=digest_bytes(data), size_bytes=memoryview(data).nbytes)


def _damaged(path: Path) -> DigestMismatch:
    return DigestMismatch(f"the stored blob {path} is damaged; delete the file and upload the blob again")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
