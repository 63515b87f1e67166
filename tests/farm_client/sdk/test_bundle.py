"""Bundles: the same bytes for the same code, caches and data left out."""

from __future__ import annotations

import os
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from farm_client.sdk.bundle import MAX_FILE_BYTES, make_bundle
from protocol.digests import digest_bytes
from protocol.errors import InvalidTask


def names(data: bytes) -> list[str]:
    return zipfile.ZipFile(BytesIO(data)).namelist()


def folder_of_code(root: Path) -> Path:
    code = root / "code"
    for path in ("train.py", "net/layers.py", "__pycache__/train.pyc", ".git/config", "net/old.pyc", ".venv/x.py"):
        (code / path).parent.mkdir(parents=True, exist_ok=True)
        (code / path).write_text(f"# {path}\n")
    (code / "data.npz").write_bytes(b"data")
    (code / "env").mkdir()
    (code / "env" / "pyvenv.cfg").write_text("")
    return code


def test_a_folder_without_what_is_no_code(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path)
    bundle = make_bundle(code, without=[code / "data.npz"])
    assert names(bundle.data) == ["net/layers.py", "train.py"]
    assert bundle.entry == "train.py"
    assert bundle.blob.digest == digest_bytes(bundle.data)
    bundle.unpack(tmp_path / "out")
    assert (tmp_path / "out" / "net" / "layers.py").read_text() == "# net/layers.py\n"


def test_the_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    code = folder_of_code(tmp_path)
    before = make_bundle(code)
    os.utime(code / "train.py", (1, 1))
    (code / "train.py").chmod(0o755)
    assert make_bundle(code) == before
    (code / "train.py").write_text("# changed\n")
    assert make_bundle(code).blob != before.blob


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("y = 1\n")
    bundle = make_bundle(tmp_path / "mine.py")
    assert (names(bundle.data), bundle.entry) == (["mine.py"], "mine.py")


@pytest.mark.parametrize(
    ("files", "entry", "found"),
    [
        (["solo.py", "README"], None, "solo.py"),
        (["train.py", "main.py"], None, "train.py"),
        (["a.py", "main.py"], None, "main.py"),
        (["a.py", "b.py"], "b.py", "b.py"),
    ],
)
def test_the_entry_is_found(tmp_path: Path, files: list[str], entry: str | None, found: str) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    assert make_bundle(tmp_path, entry).entry == found


def test_what_cannot_be_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "two" / name).write_text("")
    (tmp_path / "notes.txt").write_text("")
    large = tmp_path / "large"
    large.mkdir()
    (large / "train.py").write_text("")
    with (large / "blob.bin").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for code, entry, sentence in (
        (tmp_path / "nothing", None, "there is no"),
        (tmp_path / "notes.txt", None, "not a Python file"),
        (tmp_path / "empty", None, "no Python file"),
        (tmp_path / "two", None, "several Python files"),
        (tmp_path / "two", "c.py", "there is no c.py"),
        (large, None, r"blob.bin has 16\.0 MiB, too large for code: give data with --data"),
    ):
        with pytest.raises(InvalidTask, match=sentence):
            make_bundle(code, entry)
