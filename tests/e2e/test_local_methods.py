"""SCAFFOLD and Streaming DiLoCo on a real farm: processes in their sandboxes, files between them."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from tests.e2e.conftest import RealFarm

TASK = """
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=0.1)
"""


def submit(farm: RealFarm, folder: Path, recipe: str) -> str:
    """Submit a task of this recipe over 512 rows, and wait until it is done."""
    folder.mkdir()
    (folder / "train.py").write_text(textwrap.dedent(TASK))
    (folder / "task.toml").write_text(
        f"""
        [task]
        entry = "train.py"
        data = "data.npz"
        [recipe]
        mode = "weights"
        round_samples = 128
        batch_samples = 8
        min_clients = 2
        evaluate_every = 0
        {recipe}
        """
    )
    random = np.random.default_rng(0)
    x = random.normal(size=(512, 4)).astype("f4")
    np.savez(folder / "data.npz", x=x, y=(x.sum(axis=1) > 0).astype("i8"))
    task = farm.submit(str(folder))
    assert farm.run("wait", task, "--timeout", "80").exit_code == 0
    return task


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_client_keeps_its_control_variate_and_tells_a_fragment_at_a_time(
    tmp_path: Path, start_farm: Callable[[int], RealFarm]
) -> None:
    farm = start_farm(2)
    submit(farm, tmp_path / "scaffold", "rounds = 4\nscaffold_clients = 2")
    kept = sorted(farm.folder.glob("*/controls/*/*.control"))
    assert len(kept) == 2
    for path in kept:
        control = safetensors.torch.load_file(path)
        assert {name: tuple(tensor.shape) for name, tensor in control.items()}["0.weight"] == (8, 4)
        assert control["2.weight"].any()

    # What the clients of a split have, travels: no machine keeps it. Their rows are unlike.
    dealt = 'split = "dirichlet"\nsplit_parts = 3\nsplit_alpha = 0.1\nsplit_by = "y"\nscaffold_clients = 3'
    split = submit(farm, tmp_path / "split", f"rounds = 3\n{dealt}")
    assert sorted(farm.folder.glob("*/controls/*/*.control")) == kept
    assert farm.run("pull", split, "-o", str(tmp_path / "split.safetensors")).exit_code == 0

    task = submit(
        farm,
        tmp_path / "streaming",
        'rounds = 5\nfragments = 2\nfragment_overlap_steps = 3\ninner_state = "kept"\nweights_codec = "pulse"',
    )
    versions = []
    for number in range(2, 6):
        file = tmp_path / f"{number}.safetensors"
        pulled = farm.run("pull", task, "--round", str(number), "-o", str(file))
        if pulled.exit_code == 0:
            versions.append((number, safetensors.torch.load_file(file)))
    assert len(versions) >= 3
    for (_, before), (number, after) in itertools.pairwise(versions):
        changed = {name for name in after if not np.array_equal(after[name], before[name])}
        # The round that makes version n is number n - 1.
        assert changed == {f"{2 * ((number - 1) % 2)}.{part}" for part in ("weight", "bias")}
