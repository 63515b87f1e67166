"""With fixed parts a run repeats to the bit, whoever takes part."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm, real_farm

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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    """Give a farm with two volunteers, the same to both modes."""
    with real_farm(tmp_path_factory.mktemp("farm"), 2) as farm:
        yield farm


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["weights", "gradients"])
def test_one_client_and_two_give_the_same_bits(tmp_path: Path, pair: RealFarm, mode: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(230, 4)).astype("f4")
    tasks = {}
    for clients in (["volunteer-1"], ["volunteer-1", "volunteer-2"]):
        folder = tmp_path / str(len(clients))
        folder.mkdir()
        (folder / "train.py").write_text(textwrap.dedent(CODE))
        (folder / "task.toml").write_text(textwrap.dedent(TASK.format(clients=clients)))
        np.savez(folder / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
        tasks[pair.submit(str(folder), "--mode", mode)] = folder / "model.safetensors"
    models = []
    for task, model in tasks.items():
        assert pair.run("wait", task, "--timeout", "80").exit_code == 0
        assert pair.run("pull", task, "-o", str(model)).exit_code == 0
        models.append(load_file(model))
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
