"""The suite's own ways with workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import os
from pathlib import Path

def test_that_ends_its_worker_once():
    died = Path(__file__).with_name("died")
    if not died.exists():
        died.touch()
        os._exit(3)
"""


def test_what_a_crashed_worker_had_done_stops_nobody(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"test_{number}.py").write_text("def test_that_passes():\n    pass\n")
    (tmp_path / "test_crash.py").write_text(TESTS)
    command = ["-m", "pytest", "-p", "tests.side_by_side", "-n", "1", "--dist", "loadfile", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "1 failed, 6 passed" in ran.stdout, ran.stdout + ran.stderr
