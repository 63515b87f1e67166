"""An owner pauses, resumes and finishes a real agent in the midst of its inner steps, as a person would."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farm_client.agent.owner.control import ask
from tests.e2e.conftest import RealFarm

CODE = """
    import threading
    from torch import nn

    def build_model(config):
        return nn.Linear(4, 2)

    def loss(model, batch):
        threading.Event().wait(0.1)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    rounds = 1
    round_samples = 320
    batch_samples = 4
    mode = "weights"
    evaluate_every = 0
    snapshot_seconds = 3600
"""


def farm_client(home: Path, *words: str) -> None:
    """Type a command of `farm-client`."""
    command = [sys.executable, "-m", "farm_client", *words, "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_pause_frees_the_machine_and_the_steps_before_it_count(tmp_path: Path, shared_farm: RealFarm) -> None:
    x = np.random.default_rng(0).normal(size=(400, 4)).astype("f4")
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text(textwrap.dedent(TASK))
    task = shared_farm.submit(str(tmp_path))
    volunteer = shared_farm.volunteers[0]
    home = shared_farm.folder / volunteer.name

    def asked(verb: str) -> Any:
        return ask(home / "control.sock", {"do": verb})

    def is_in_mid_work() -> bool:
        return any(0 < work["samples_done"] < work["samples"] for work in asked("status")["work"])

    shared_farm.wait_until(is_in_mid_work, "it trains")
    asked("pause")
    shared_farm.wait_until(lambda: not psutil.Process(volunteer.pid).children(), "every executor is gone")
    assert asked("status")["rests"][0]["reason"] == "paused"
    (paused,) = shared_farm.api.clients()
    assert (paused.state, paused.reason[:7]) == ("paused", "paused:")
    (kept,) = (home / "snapshots").rglob("*.state")
    assert kept.stat().st_size > 0
    asked("resume")
    assert shared_farm.run("wait", task, "--timeout", "60").exit_code == 0
    assert "going on from a snapshot" in shared_farm.run("logs", task).stdout
    farm_client(home, "finish")
    assert volunteer.process.wait(60) == 0
