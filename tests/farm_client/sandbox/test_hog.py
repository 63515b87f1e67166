"""What goes over a bound for the proof lasts as long as somebody listens, whatever became of who started it."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest


@pytest.mark.parametrize(("what", "amount", "children"), [("forks", 3, 3), ("memory", 1_000_000, 0)])
def test_a_hog_that_nobody_hears_ends_with_all_that_it_started(what: str, amount: int, children: int) -> None:
    command = [sys.executable, "-m", "farm_client.sandbox.hog", what, str(amount)]
    hog = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert hog.stdout is not None
        assert hog.stdout.readline() == f"holds {amount}\n".encode()
        family = [process := psutil.Process(hog.pid), *process.children()]
        assert len(family) == 1 + children
        with pytest.raises(subprocess.TimeoutExpired):
            hog.wait(0.2)
        hog.stdout.close()
        hog.wait(20)
        _, alive = psutil.wait_procs(family, 20)
        assert alive == []
    finally:
        hog.kill()
        hog.wait()
