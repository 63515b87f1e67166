"""What is no regular file is refused before it is read: a device has no end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from farm_client.sdk.recipe_files import read_recipe
from farm_client.sdk.sweeping.plan import read_plan
from farm_client.sdk.task_file import read_changes
from farm_client.sdk.toml_file import toml_text
from protocol.errors import InvalidTask

READERS = [toml_text, read_recipe, read_plan, read_changes]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.timeout(10)  # a reader that opens the pipe waits for a writer
def test_pipes_and_folders_are_told_at_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for path in (tmp_path / "pipe.toml", tmp_path):
        with pytest.raises(InvalidTask, match="no regular file"):
            read(path)


def test_what_may_not_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_path: Path, **_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(InvalidTask, match="cannot be read: Permission denied"):
        toml_text(tmp_path / "mine.toml")


def test_a_byte_order_mark_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("a = 1", encoding="utf-8-sig")
    assert toml_text(tmp_path / "mine.toml") == "a = 1"
