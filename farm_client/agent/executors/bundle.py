"""Unpacks a task's code: an untrusted zip, of which nothing may land outside its folder or fill the disk."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

from farm_client.agent.errors import BadBundle
from protocol.bundles import MAX_BUNDLE_BYTES, TAIL_BYTES, Inventory, directory_fault

_CHUNK_BYTES: Final = 1024 * 1024
_MACHINES: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOENT}
    | {errno.EACCES, errno.EPERM}
)
"""What the operating system says of this machine, and no zip can make it say."""


def unpack_bundle(bundle: Path, into: Path, max_bytes: int = MAX_BUNDLE_BYTES) -> None:
    """Unpack the zip into the new folder ``into``. Sizes are counted as they come, whatever the zip says of itself.

    Raises: BadBundle saying what is wrong with the zip, whatever that is; OSError for a fault of this machine's disk.
    """
    try:
        with bundle.open("rb") as file:
            _unpack(file, into, max_bytes)
    except BadBundle:
        raise
    except Exception as error:  # zlib, lzma, struct, codecs and zipfile itself have errors of their own for damage
        if isinstance(error, OSError) and error.errno in _MACHINES:
            raise
        reason = str(error) or type(error).__name__
        raise BadBundle(f"the code bundle is not a readable zip ({reason}); submit it again") from error


def _unpack(file: BinaryIO, into: Path, max_bytes: int) -> None:
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, size_bytes - TAIL_BYTES))
    _refuse(directory_fault(file.read(TAIL_BYTES)))
    with zipfile.ZipFile(file) as archive:
        inventory = Inventory()
        for entry in archive.infolist():
            _refuse(inventory.add(entry))
        into.mkdir(mode=0o700)
        left_bytes = max_bytes
        for entry in archive.infolist():
            left_bytes -= _extract(archive, entry, into / entry.filename, left_bytes)


def _refuse(fault: str | None) -> None:
    if fault is not None:
        raise BadBundle(f"the code bundle cannot be unpacked: {fault}; submit it again")


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
