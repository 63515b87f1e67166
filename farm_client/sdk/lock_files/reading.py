"""Reads the file that ``--requirements`` names, whichever tool wrote it, and writes the lock that travels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from farm_client.sdk.lock_files.pylock import read_pylock
from farm_client.sdk.lock_files.uv_lock import read_uv_lock
from protocol.errors import InvalidTask
from protocol.locks import Pin, read_lock, write_lock
from protocol.tasks import BlobRef
from protocol.wording import sized

MAX_FILE_BYTES: Final = 16 * 1024**2
"""Far more than the lock of the largest project: it also names what is left out."""
_PINNED: Final = re.compile(rb"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]\n]*\])?==", re.MULTILINE)
"""A line of requirements, which TOML has none of."""


def lock_blob(path: Path | None) -> tuple[BlobRef | None, dict[str, bytes]]:
    """Return how a task names the lock of a file, and the lock by digest; nothing without a file.

    Raises: InvalidTask.
    """
    if path is None:
        return None, {}
    lock = lock_of_file(path)
    ref = BlobRef.carrying(lock).bare()
    return ref, {ref.digest: lock}


def lock_of_file(path: Path) -> bytes:
    """Return the lock of a ``uv.lock``, a ``pylock.toml`` or pinned requirements with hashes.

    Which of them it is says its name: ``*.lock`` and ``*.toml`` are the first two, anything else is requirements. So is
    a ``*.lock`` with a line that pins a package with ``==``, as other tools call their requirements.
    Raises: InvalidTask naming the file, and the line that can't be taken.
    """
    try:
        return write_lock(_pins(path))
    except InvalidTask as error:
        raise InvalidTask(f"--requirements {path}: {error.message}") from error


def _pins(path: Path) -> list[Pin]:
    data = _read(path)
    if path.suffix not in {".lock", ".toml"} or (path.suffix == ".lock" and _PINNED.search(data)):
        return list(read_lock(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTask("it is no text") from error
    if path.suffix == ".lock":
        return read_uv_lock(text)
    if path.name == "pyproject.toml":
        raise InvalidTask("it says what is wanted and pins nothing: run `uv lock`, and give uv.lock")
    return read_pylock(text)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InvalidTask("there is no such file: give a uv.lock, a pylock.toml or requirements with hashes")
    try:
        if (size_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise InvalidTask(f"it has {sized(size_bytes)}, at most {sized(MAX_FILE_BYTES)} are allowed")
        return path.read_bytes()
    except OSError as error:
        raise InvalidTask(f"it can't be read: {error.strerror}") from error
