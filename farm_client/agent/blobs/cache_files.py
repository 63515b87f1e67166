"""The files of the cache's folder: what one looks like, whether it is sound, and what an earlier run left."""

from __future__ import annotations

import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from farm_client.transfer.partial_file import read_sidecar, remove_partial
from protocol.digests import new_hasher
from protocol.errors import DigestMismatch

_READ_BYTES: Final = 4 * 1024 * 1024
_READ_ONLY: Final = 0o444
_KEEP_PARTIAL_SECONDS: Final = 24 * 3600.0
"""A download that nobody went on with for so long is forgotten."""


class Look(NamedTuple):
    """What changes when somebody writes to a file, cuts it or puts another one in its place."""

    size_bytes: int
    written_at_ns: int
    inode: int


def look_of(path: Path) -> Look | None:
    """Return what the file looks like; None if there is none."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return _look(found)


def look_if_sound(path: Path, digest: str) -> Look | None:
    """Read the whole file; return what it looks like if it hashes to ``digest`` and nobody wrote to it meanwhile."""
    try:
        # a link would lead out of the folder that whoever made it may write to; a pipe would be waited for
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    before, hasher = os.fstat(handle), new_hasher()
    if not stat.S_ISREG(before.st_mode):
        os.close(handle)
        return None
    with os.fdopen(handle, "rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            hasher.update(data)
        sound = hasher.hexdigest() == digest and _look(before) == _look(os.fstat(handle))
    return _look(before) if sound else None


def copy_if_sound(path: Path, copied: Path, digest: str) -> Look | None:
    """Copy a file; return what the copy looks like if it hashes to ``digest``; else there is none."""
    shutil.copyfile(path, copied, follow_symlinks=False)  # a file system that can shares the blocks
    look = look_if_sound(copied, digest)
    if look is None:
        copied.unlink()
    return look


def protect(path: Path) -> None:
    """Let nobody write to the file by mistake: executors map it."""
    path.chmod(_READ_ONLY)


def touch(path: Path, look: Look, used_at_ns: int) -> None:
    """Note on the file when it was last used; what it looks like stays."""
    os.utime(path, ns=(used_at_ns, look.written_at_ns))


def mismatch(digest: str) -> DigestMismatch:
    """Make the error of a file that is not what it should be called."""
    return DigestMismatch(f"the file does not hash to {digest}: it was damaged, or made otherwise than the farm's")


def _look(found: os.stat_result) -> Look:
    return Look(found.st_size, found.st_mtime_ns, found.st_ino)


class Found(NamedTuple):
    """A blob, or the part of one that had come when its download was cut."""

    idle_seconds: float
    digest: str
    size_bytes: int
    """Of the whole blob."""
    whole: bool


def scan(root: Path) -> list[Found]:
    """List what is there, the longest unused first, and remove what is of no use to anybody."""
    now = time.time()
    found = [*_blobs(root, now), *_partials(root, now)]
    unfinished = {entry.digest for entry in found if not entry.whole}
    for path in root.glob("*.*"):  # half-written when the process ended, or what is known of a file that is gone
        if path.name.partition(".")[0] not in unfinished:
            with suppress(OSError):
                path.unlink()
    return sorted(found, reverse=True)


def _blobs(root: Path, now: float) -> list[Found]:
    found = []
    for path in root.glob("[0-9a-f][0-9a-f]/*"):
        with suppress(OSError):
            stat = path.stat()
            found.append(Found(now - stat.st_atime, path.name, stat.st_size, whole=True))
    return found


def _partials(root: Path, now: float) -> list[Found]:
    kept = []
    for path in root.glob("*.part"):
        idle_seconds, sidecar = now - path.stat().st_mtime, read_sidecar(path)
        if sidecar is None or idle_seconds > _KEEP_PARTIAL_SECONDS:
            remove_partial(path)
        else:
            kept.append(Found(idle_seconds, path.stem, sidecar.size_bytes, whole=False))
    return kept
