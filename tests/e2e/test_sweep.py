"""A sweep on a real farm: trials share what was sent, one that does badly is cancelled, and it ends with the best."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import RealFarm, real_farm

CODE = """
    import time
    import torch
    from torch import nn

    def build_model(config):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        with torch.no_grad():
            model.bias[0] += 10.0 * (config["lr"] == 0)
        return model

    def loss(model, batch):
        if model.bias.abs().max() > 9:  # the bad trial: slow, so that it is still there to be given up
            time.sleep(0.3)
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def build_optimizer(model, config):
        return torch.optim.SGD(model.parameters(), lr=config["lr"])
"""
PLAN = """
    [sweep]
    metric = "loss"
    sampler = "grid"
    pruner = "median"
    startup = 1
    at_once = 1
    [space]
    lr = [0.5, 0.0, 1.0]
"""


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[RealFarm]:
    with real_farm(tmp_path / "farm", 1) as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_sweep_finds_the_best_and_the_same_command_has_nothing_more_to_do(tmp_path: Path, farm: RealFarm) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    (tmp_path / "lr.toml").write_text(textwrap.dedent(PLAN))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 4)).astype("f4")
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype("i8"))
    options = ["--data", str(tmp_path / "data.npz"), "--holdout", "0.25", "--recipe", "fedavg", "--rounds", "8"]
    line = ["sweep", str(tmp_path / "lr.toml"), str(tmp_path / "train.py"), *options, "--evaluate-every", "1", "--json"]
    swept = farm.run(*line)
    assert swept.exit_code == 0, swept.stderr
    last = swept.envelopes("sweep")[-1]
    assert [trial["state"] for trial in last["trials"]] == ["complete", "pruned", "complete"]
    assert last["best"] == 2
    best = last["trials"][2]
    assert f"farm pull {best['task_id']} --best" in swept.stderr
    views = [farm.api.task(trial["task_id"]).task for trial in last["trials"]]
    assert [view.name for view in views] == ["lr/0", "lr/1", "lr/2"]
    assert [view.state for view in views] == ["completed", "cancelled", "completed"]
    specs = [farm.api.task(trial["task_id"]).spec for trial in last["trials"]]
    assert len({spec.code.digest for spec in specs}) == len({spec.dataset for spec in specs}) == 1
    assert farm.run(*line).envelopes("sweep")[-1] == last
    assert len(farm.api.tasks()) == 3
