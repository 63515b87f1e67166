"""Unpacking a task's code: a zip from a stranger, so nothing in it may land outside its folder or fill the disk."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import Final

from farm_client.agent.errors import BadBundle

MAX_BUNDLE_BYTES: Final = 256 * 1024 * 1024
"""Unpacked; data belongs into shards, not into code."""
MAX_BUNDLE_FILES: Final = 10_000
_CHUNK_BYTES: Final = 1024 * 1024


def unpack_bundle(bundle: Path, into: Path, max_bytes: int = MAX_BUNDLE_BYTES) -> None:
    """Unpack the zip into the new folder ``into``. Sizes are counted as they come, whatever the zip says of itself.

    Raises: BadBundle naming the entry that is not allowed.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_BUNDLE_FILES:
                raise BadBundle(f"the code bundle has {len(entries)} entries and may have {MAX_BUNDLE_FILES}")
            targets = [(entry, into / _safe_path(entry)) for entry in entries]
            into.mkdir(mode=0o700)
            left_bytes = max_bytes
            for entry, target in targets:
                left_bytes -= _extract(archive, entry, target, left_bytes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadBundle(f"the code bundle is not a readable zip ({error}); submit it again") from error


def _safe_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    path = PurePosixPath(entry.filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadBundle(f"the code bundle has a link or device, which is not allowed: {entry.filename!r}")
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename or not path.parts:
        raise BadBundle(f"the code bundle has a path that leads out of its folder: {entry.filename!r}")
    return path


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left_bytes: int) -> int:
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > left_bytes:
                raise BadBundle("the code bundle is too large when unpacked; give data with --data, not as code")
            file.write(chunk)
    return written
