"""New blobs on their way to the disk together: written one after the other, synced at the same time."""

from __future__ import annotations

import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from protocol.digests import new_hasher
from protocol.tasks import BlobRef

Chunk = bytes | bytearray | memoryview
"""A contiguous piece of a blob; a memoryview has one dimension and bytes as its items."""
_BLOCK_BYTES: Final = 4 * 1024 * 1024
"""Written and hashed at once: still in the cache when it is hashed."""
_RETIRED_SECONDS: Final = 60.0
"""Nobody takes longer from finding a file to opening it."""


class NewBlob:
    """A blob that is being written, and hashed on the way."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._hasher = new_hasher()
        self._size_bytes = 0

    def write(self, data: Chunk, /) -> int:
        """Write all of it. Raises: OSError."""
        view = memoryview(data)
        for start in range(0, view.nbytes, _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            _write_all(self._file, block)
            self._hasher.update(block)
        self._size_bytes += view.nbytes
        return view.nbytes

    @property
    def ref(self) -> BlobRef:
        """Name what was written so far."""
        return BlobRef(digest=self._hasher.hexdigest(), size_bytes=self._size_bytes)


class EarlyFiles:
    """Blobs that can be read though they have no name yet: they are on their way to the disk. Safe on any thread.

    A reader may have found a file by its temporary name and open it a moment later: that name outlives the batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, Path] = {}
        self._retired: deque[tuple[float, Path]] = deque()

    def add(self, path: Path, ref: BlobRef) -> None:
        """Let a written file be found."""
        with self._lock:
            self._files[ref.digest] = path

    def find(self, digest: str) -> Path | None:
        """Return the blob's file, if it is one of these."""
        return self._files.get(digest)

    def drop(self, files: Mapping[Path, BlobRef]) -> None:
        """Files of a batch have names now, or are gone: they are found here no more."""
        with self._lock:
            for path, ref in files.items():
                if self._files.get(ref.digest) == path:
                    del self._files[ref.digest]

    def retire(self, paths: Iterable[Path]) -> None:
        """Remove temporary names some time after the files got their lasting ones."""
        now = time.monotonic()
        old: list[Path] = []
        with self._lock:
            self._retired.extend((now, path) for path in paths)
            while self._retired and self._retired[0][0] < now - _RETIRED_SECONDS:
                old.append(self._retired.popleft()[1])
        for path in old:
            path.unlink(missing_ok=True)


class BlobBatch:
    """What ``FolderBlobStore.batch`` hands out. Used by one thread at a time.

    ``new_file`` makes an empty temporary file; ``is_stored`` tells of a blob that need not be stored again;
    ``on_written`` gets each file that is written and not synced yet.
    """

    def __init__(
        self,
        new_file: Callable[[], Path],
        is_stored: Callable[[BlobRef], bool],
        syncing: Executor,
        on_written: Callable[[Path, BlobRef], None] | None = None,
    ) -> None:
        self._new_file = new_file
        self._is_stored = is_stored
        self._syncing = syncing
        self._on_written = on_written
        self._files: dict[Path, BlobRef] = {}
        self._syncs: list[Future[None]] = []

    def add(self, chunks: Iterable[Chunk]) -> BlobRef:
        """Write one blob and return its name; it is stored, durably, when the batch ends.

        The chunks are read once, and no copy is made of them. Raises: OSError if the disk refuses; whatever
        ``chunks`` raises.
        """
        with self.file() as new:
            for chunk in chunks:
                new.write(chunk)
        return new.ref

    @contextmanager
    def file(self) -> Iterator[NewBlob]:
        """Write one blob as a file; after the block its name is known. Raises: OSError if the disk refuses."""
        path = self._new_file()
        with ExitStack() as stack:
            file = stack.enter_context(path.open("wb", buffering=0))
            new = NewBlob(file)
            yield new
            if not self._is_stored(new.ref):
                stack.pop_all()
                self._files[path] = new.ref
                if self._on_written is not None:
                    self._on_written(path, new.ref)
                self._syncs.append(self._syncing.submit(_sync, file))  # while the next blob is written

    @property
    def files(self) -> Mapping[Path, BlobRef]:
        """The files that were written so far."""
        return self._files

    def synced(self) -> dict[Path, BlobRef]:
        """Wait until no thread touches the files any more; return those that now can be given their names.

        Raises: OSError if the disk refuses.
        """
        errors = [sync.exception() for sync in self._syncs]
        if (error := next(filter(None, errors), None)) is not None:
            raise error
        return self._files


def size_of(chunks: Iterable[Chunk]) -> int:
    """Count the bytes."""
    return sum(memoryview(chunk).nbytes for chunk in chunks)


def _write_all(file: io.FileIO, block: memoryview) -> None:
    rest = block
    while rest:
        rest = rest[file.write(rest) :]


def _sync(file: io.FileIO) -> None:
    with file:  # the descriptor that wrote is the one that hears of the disk's errors
        os.fsync(file.fileno())
