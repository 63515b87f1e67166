"""What a task's code bundle may be: a plain zip that every client can unpack, inside its own folder and within bounds.

The server asks before it takes a task, and each client again before it writes a file: the same rules on both sides.
Nothing here reads a file: ``directory_fault`` takes the end of the zip, ``Inventory`` one entry after the other.
"""

from __future__ import annotations

import stat
import struct
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

MAX_BUNDLE_BYTES: Final = 256 * 1024 * 1024
"""Of the zip, and of its files together; data belongs into shards, not into code."""
MAX_BUNDLE_FILES: Final = 10_000
MAX_NAME_BYTES: Final = 200
"""Of one folder or file name: file systems take 255."""
MAX_PATH_BYTES: Final = 1000
MAX_DIRECTORY_BYTES: Final = 4 * 1024 * 1024
"""Of the zip's directory, which is read into memory as a whole before its entries can be counted."""
TAIL_BYTES: Final = 22 + 65_535 + 20
"""How much of a zip's end ``directory_fault`` must see: its last record, with the longest comment, and a locator."""

_END: Final = struct.Struct("<4s4H2LH")
_END_SIGNATURE: Final = b"PK\5\6"
_LOCATOR_SIGNATURE: Final = b"PK\6\7"
_LOCATOR_BYTES: Final = 20
_ENCRYPTED: Final = 0x1
_METHODS: Final = frozenset({ZIP_STORED, ZIP_DEFLATED})
_SHOWN_CHARS: Final = 80


def directory_fault(tail: bytes) -> str | None:
    """Return what is wrong with the end of a zip, given its last ``TAIL_BYTES``; None if its directory may be read.

    A directory that is huge, or only to be found by the ZIP64 records that a bundle has no use for, is refused unread.
    """
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END.size:
        return "it is not a zip, or its end is missing"
    if at >= _LOCATOR_BYTES and tail.startswith(_LOCATOR_SIGNATURE, at - _LOCATOR_BYTES):
        return "it is a ZIP64 file"
    _, _, _, _, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    if entries > MAX_BUNDLE_FILES or directory_bytes > MAX_DIRECTORY_BYTES:
        return f"it has {entries} entries in a directory of {directory_bytes} bytes: at most {MAX_BUNDLE_FILES} may be"
    return None


@dataclass(slots=True)
class Inventory:
    """The paths of a bundle so far: ``add`` judges one entry after the other."""

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    """Those that were named, and those that files need."""
    entries: int = 0

    def add(self, entry: ZipInfo) -> str | None:
        """Return what forbids this entry beside those before it; None if nothing does."""
        self.entries += 1
        if self.entries > MAX_BUNDLE_FILES:
            return f"it has {self.entries} entries or more, and may have {MAX_BUNDLE_FILES}"
        fault = _entry_fault(entry) or _path_fault(entry.filename) or self._clash(entry)
        return fault and f"{fault}: {entry.filename[:_SHOWN_CHARS]!a}"

    def _clash(self, entry: ZipInfo) -> str | None:
        path = PurePosixPath(entry.filename)
        parents = {str(parent) for parent in path.parents}
        if parents & self.files or (entry.is_dir() and str(path) in self.files):
            return "it has a folder with the name of a file"
        if not entry.is_dir():
            if str(path) in self.files | self.folders:
                return "it has two entries of one name"
            self.files.add(str(path))
        self.folders |= parents | ({str(path)} if entry.is_dir() else set())
        return None


def _entry_fault(entry: ZipInfo) -> str | None:
    if entry.flag_bits & _ENCRYPTED:
        return "it has an encrypted entry"
    if entry.compress_type not in _METHODS:
        return f"it is compressed by method {entry.compress_type}, and only deflate can be unpacked everywhere"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it has a link or device, which is not allowed"
    return None


def _path_fault(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        return "it has a path that leads out of its folder"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "it has a name with control characters"
    if len(name.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        return f"it has a name of more than {MAX_NAME_BYTES} bytes, or a path of more than {MAX_PATH_BYTES}"
    return None
