"""One file of the cache: what it looks like, and whether it is what its name says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from protocol.digests import new_hasher
from protocol.errors import DigestMismatch

_READ_BYTES: Final = 4 * 1024 * 1024
_READ_ONLY: Final = 0o444


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
