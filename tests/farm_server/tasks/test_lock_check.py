"""The server reads a lock whole before a task with it is taken in."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm_server.tasks.lock_check import check_lock
from protocol.errors import InvalidTask
from protocol.locks import MAX_LOCK_BYTES


def test_a_lock_is_pins_with_hashes_and_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(f"einops==0.8.1 --hash=sha256:{'a' * 64}\n")
    check_lock(path)
    path.write_text("einops==0.8.1\n")
    with pytest.raises(InvalidTask, match="the environment's lock can't be used: line 1: einops has no --hash"):
        check_lock(path)
    path.write_bytes(b"#" * (MAX_LOCK_BYTES + 1))
    with pytest.raises(InvalidTask, match=r"the lock has .*, at most"):
        check_lock(path)
