"""The check that a task's code is a zip that every client can unpack: read to its end, and never unpacked."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from protocol.bundles import MAX_BUNDLE_BYTES, TAIL_BYTES, Inventory, directory_fault
from protocol.errors import InvalidTask
from protocol.wording import sized

_READ_BYTES: Final = 1024 * 1024


def check_bundle(path: Path, entry: str) -> None:
    """Read the whole zip: directory, names, limits, checksums; and see that the file ``entry`` is in it.

    Blocks while at most ``MAX_BUNDLE_BYTES`` are unpacked in memory, piece by piece: call it in a thread.
    Raises: InvalidTask saying what is wrong with it; OSError if the file can't be read.
    """
    with path.open("rb") as file:
        _refuse(_fault(file, entry))


def _fault(file: BinaryIO, entry: str) -> str | None:
    size_bytes = file.seek(0, os.SEEK_END)
    if size_bytes > MAX_BUNDLE_BYTES:
        much = f"{sized(size_bytes)}, at most {sized(MAX_BUNDLE_BYTES)} are allowed"
        return f"it has {much}; give data with --data, not as code"
    file.seek(max(0, size_bytes - TAIL_BYTES))
    if (fault := directory_fault(file.read(TAIL_BYTES))) is not None:
        return fault
    try:
        with zipfile.ZipFile(file) as archive:
            return _directory_fault(archive, entry) or _content_fault(archive)
    except Exception as error:  # zlib, struct, codecs and zipfile itself have errors of their own for damage
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise
        return f"it is damaged ({str(error) or type(error).__name__})"


def _directory_fault(archive: zipfile.ZipFile, entry: str) -> str | None:
    inventory = Inventory()
    for info in archive.infolist():
        if (fault := inventory.add(info)) is not None:
            return fault
    if (total := sum(info.file_size for info in archive.infolist())) > MAX_BUNDLE_BYTES:
        return (
            f"it unpacks to {total} bytes, at most {MAX_BUNDLE_BYTES} are allowed; give data with --data, not as code"
        )
    if str(PurePosixPath(entry)) not in inventory.files:
        return f"there is no {entry!a} in it; name the entry file by its path inside the zip"
    return None


def _content_fault(archive: zipfile.ZipFile) -> str | None:
    """Read every entry to its end: that checks its stream and its checksum. No more comes than was announced."""
    for info in archive.infolist():
        with archive.open(info) as content:
            while content.read(_READ_BYTES):
                continue
    return None


def _refuse(fault: str | None) -> None:
    if fault is not None:
        raise InvalidTask(f"the code bundle can't be used: {fault}")
