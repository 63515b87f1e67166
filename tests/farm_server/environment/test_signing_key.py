"""The farm's own key: made once, kept, never replaced by another one unasked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from farm_server.environment.signing_key import KEY_FILE, SigningKey
from protocol.errors import FarmError


def test_it_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "certificate.new").write_text("half a key of a start that was killed")
    key = SigningKey(tmp_path / KEY_FILE)
    key.make()
    first = key.seed
    key.make()
    assert key.seed == first
    assert len(first) == 32
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_two_farms_have_two(tmp_path: Path) -> None:
    keys = [SigningKey(tmp_path / name) for name in ("a.key", "b.key")]
    for key in keys:
        key.make()
    assert keys[0].seed != keys[1].seed
    assert keys[0].public() != keys[1].public()


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "é"])
def test_a_damaged_one_is_said_and_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / KEY_FILE
    path.write_text(content, encoding="utf-8")
    key = SigningKey(path)
    key.make()
    with pytest.raises(FarmError, match="holds no key"):
        _ = key.seed
    assert path.read_text(encoding="utf-8") == content
