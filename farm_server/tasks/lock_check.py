"""The check that a task's lock is one that clients can install from: each package pinned, with hashes."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import InvalidTask
from protocol.locks import MAX_LOCK_BYTES, read_lock
from protocol.wording import sized


def check_lock(path: Path) -> None:
    """Read the whole lock. Raises: InvalidTask naming the line that is none; OSError if the file can't be read."""
    if (size_bytes := path.stat().st_size) > MAX_LOCK_BYTES:
        raise InvalidTask(f"the lock has {sized(size_bytes)}, at most {sized(MAX_LOCK_BYTES)} are allowed")
    try:
        read_lock(path.read_bytes())
    except InvalidTask as error:
        raise InvalidTask(f"the environment's lock can't be used: {error.message}") from error
