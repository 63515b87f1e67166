"""Codecs in both directions on a farm of real processes: as good a model, for a fraction of the bytes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm
from tests.farm_client.executor.awkward import AWKWARD

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ("--update-codec", "int8", "--weights-codec", "int8")


def trained(farm: RealFarm, *arguments: str) -> tuple[str, int, int]:
    """Train a task to its end; return its id, and the bytes that came from clients and went to them meanwhile."""
    before = farm.api.farm()
    task_id = farm.submit(*arguments)
    ended = farm.run("wait", task_id, "--timeout", "200", timeout_seconds=220)
    assert ended.exit_code == 0, ended.stderr + farm.api.why(task_id)
    after = farm.api.farm()
    assert [line.text for line in farm.api.logs(task_id) if line.stream == "agent"] == [], "no difference was refused"
    return task_id, after.received.bytes - before.received.bytes, after.sent.bytes - before.sent.bytes


@pytest.mark.timeout(300)
def test_int8_both_ways_is_as_good_as_whole_floats(farm: RealFarm) -> None:
    digits = str(EXAMPLES / "digits")
    plain, plain_up, plain_down = trained(farm, digits, "--rounds", "12")
    small, small_up, small_down = trained(farm, digits, "--rounds", "12", *SMALL)
    accuracies = [farm.api.task(task_id).task.metrics["accuracy"] for task_id in (plain, small)]
    assert accuracies[0] > 0.95
    assert accuracies[1] > accuracies[0] - 0.02
    assert small_up < plain_up / 3
    assert small_down < plain_down / 2


@pytest.mark.timeout(300)
def test_diloco_with_every_kind_of_tensor(farm: RealFarm, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(640, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x.sum(axis=1) > 0).astype(np.int64))
    (tmp_path / "train.py").write_text(textwrap.dedent(AWKWARD))
    (tmp_path / "task.toml").write_text(
        """
        [task]
        data = "data.npz"
        holdout = 0.2
        [recipe]
        rounds = 12
        round_samples = 256
        batch_samples = 16
        inner_state = "kept"
        evaluate_every = 6
        max_staleness = 1
        pipeline = true
        update_codec = "int8"
        weights_codec = "int8"
        [recipe.outer]
        options = { lr = 0.7, momentum = 0.9, nesterov = true }
        """
    )
    task_id, _, _ = trained(farm, str(tmp_path))
    last = tmp_path / "last.safetensors"
    assert farm.run("pull", task_id, "-o", str(last)).exit_code == 0
    weights = load_file(last)
    assert {str(weights[name].dtype) for name in weights} == {
        "torch.float32",
        "torch.float64",
        "torch.bfloat16",
        "torch.int64",
    }
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert torch.equal(weights["tied.weight"], weights["wide.weight"])
    assert weights["calls"] > 0
    assert not torch.equal(weights["norm.running_mean"], torch.zeros(40))
