"""What an earlier run left in the cache's folder."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from farm_client.transfer.partial_file import read_sidecar, remove_partial

_KEEP_PARTIAL_SECONDS: Final = 24 * 3600.0
"""A download that nobody went on with for so long is forgotten."""


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
