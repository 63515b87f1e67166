"""An import of torch that failed once is never tried again in the same process: it would fail in other ways."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from farm_server.tensors import torch_side
from farm_server.tensors.torch_side import TorchSide
from protocol.errors import Unavailable


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), SystemError("bad call flags"), ImportError("no")]
)
def test_a_broken_import_is_said_at_each_need_and_not_tried_again(monkeypatch, error):
    tries = []

    def broken():
        tries.append(1)
        raise error

    monkeypatch.setattr(torch_side, "_imported", broken)
    side = TorchSide(1)
    for _ in range(3):
        with pytest.raises(Unavailable, match=r"torch can't be imported.*start the server again"):
            side.warm_up()
    assert len(tries) == 1
    assert not side.is_warm


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_server_that_cannot_import_torch_ends_in_one_line(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise OSError(24, 'Too many open files')")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "farm_server", "up", "--data-dir", str(tmp_path / "data"), "--port", "0", "--json"],
        env={"PYTHONPATH": f"{tmp_path / 'broken'}:{Path(__file__).parents[3]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "", "it never said that it was ready"
    assert "error: torch can't be imported (OSError: [Errno 24] Too many open files)" in done.stderr.splitlines()[-1]
    assert time.monotonic() - began < 30
