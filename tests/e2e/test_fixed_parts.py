"""With fixed parts a run repeats to the bit, whoever takes part."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm

CODE = """
    import torch
    from torch import nn

    def build_model(config):
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.AdamW(model.parameters(), lr=0.01)
"""
TASK = """
    [task]
    entry = "train.py"
    data = "data.npz"

    [recipe]
    epochs = 2
    round_samples = 100
    batch_samples = 8
    parts = "fixed"
    part_samples = 24

    [requirements]
    clients = {clients}
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "gradients"])
def test_one_client_and_two_give_the_same_bits(tmp_path: Path, farm: RealFarm, mode: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(230, 4)).astype("f4")
    models = []
    for clients in (["volunteer-1"], ["volunteer-1", "volunteer-2"]):
        folder = tmp_path / str(len(clients))
        folder.mkdir()
        (folder / "train.py").write_text(textwrap.dedent(CODE))
        (folder / "task.toml").write_text(textwrap.dedent(TASK.format(clients=clients)))
        np.savez(folder / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
        task = farm.submit(str(folder), "--mode", mode)
        assert farm.run("wait", task, "--timeout", "80").exit_code == 0
        assert farm.run("pull", task, "-o", str(folder / "model.safetensors")).exit_code == 0
        models.append(load_file(folder / "model.safetensors"))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
