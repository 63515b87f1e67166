"""An agent killed in the midst of an assignment goes on from its snapshot, to the bits of an undisturbed run."""

from __future__ import annotations

import signal
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm

CODE = """
    import os
    import threading
    import torch
    from torch import nn

    steps = []

    def build_model(config):
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))

    def loss(model, batch):
        steps.append(len(batch["y"]))
        while len(steps) == 12 and "LC_GATE" not in os.environ:
            threading.Event().wait(0.02)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=0.01)
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    rounds = 2
    round_samples = 200
    batch_samples = 8
    mode = "weights"
    inner_state = "carried"
    evaluate_every = 0
    snapshot_seconds = 0.0001
"""


@pytest.mark.slow
def test_a_killed_and_restarted_agent_gives_the_bits_of_an_undisturbed_one(
    tmp_path: Path, shared_farm: RealFarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task waits for a variable that only the second agent has, and passes on: its sandbox shows it no file."""
    x = np.random.default_rng(0).normal(size=(400, 4)).astype("f4")
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "task.toml").write_text(textwrap.dedent(TASK))
    task = shared_farm.submit(str(tmp_path))
    volunteer = shared_farm.volunteers[0]
    snapshots = shared_farm.folder / volunteer.name / "snapshots"
    shared_farm.wait_until(lambda: list(snapshots.rglob("*.assign")), "a snapshot is kept")
    shared_farm.kill(volunteer.pid, signal.SIGKILL)
    monkeypatch.setenv("LC_GATE", "open")
    shared_farm.add_volunteer(volunteer.name)
    assert shared_farm.run("wait", task, "--timeout", "80").exit_code == 0
    assert "going on from a snapshot" in shared_farm.run("logs", task).stdout
    assert list(snapshots.rglob("*.*")) == []
    undisturbed = shared_farm.submit(str(tmp_path))
    assert shared_farm.run("wait", undisturbed, "--timeout", "80").exit_code == 0
    models = []
    for number in (task, undisturbed):
        assert shared_farm.run("pull", number, "-o", str(tmp_path / f"{number}.safetensors")).exit_code == 0
        models.append(load_file(tmp_path / f"{number}.safetensors"))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
