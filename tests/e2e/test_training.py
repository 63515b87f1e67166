"""Training over real sockets, by real processes: a client dies in mid-round, and the model and the books are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import RealFarm

EPOCHS = 3
CODE = """
import time

import torch
from torch import nn


def build_model(config):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def loss(model, batch):
    time.sleep(0.02)  # long enough for a client to die within a round
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def build_optimizer(model, config):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def evaluate(model, data):
    right = total = 0
    for batch in data:
        right += int((model(batch["x"]).argmax(1) == batch["y"]).sum())
        total += len(batch["y"])
    return {"accuracy": right / total}
"""


@pytest.fixture
def task(tmp_path: Path) -> tuple[str, ...]:
    """Give the arguments of a submission: two classes that a line parts, a model with BatchNorm."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(400, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x.sum(axis=1) > 0).astype(np.int64))
    (tmp_path / "train.py").write_text(CODE)
    data = ("--data", str(tmp_path / "data.npz"), "--holdout", "0.2", "--epochs", str(EPOCHS))
    return (str(tmp_path / "train.py"), *data, "--round-samples", "160", "--batch-samples", "8")


@pytest.mark.parametrize("mode", ["weights", "gradients"])
def test_a_client_killed_in_mid_round_costs_no_sample(
    farm: RealFarm, task: tuple[str, ...], mode: str, tmp_path: Path
) -> None:
    task_id = farm.submit(*task, "--mode", mode)
    by_name = {volunteer.name: volunteer for volunteer in farm.volunteers}

    def working() -> str | None:
        if farm.api.task(task_id).task.round < 1:
            return None
        return next((c.name for c in farm.api.clients() if c.assignments), None)

    victim = farm.wait_until(working, "a client works on a later round")
    farm.kill(by_name[victim].pid)
    assert farm.run("wait", task_id, "--timeout", "60").exit_code == 0

    books = farm.run("show", task_id, "--shards", "--json").envelope("shards")
    assert {book["epoch"] for book in books} == set(range(EPOCHS))
    assert [b for b in books if b["counted_samples"] != b["samples"] or b["repeated_samples"]] == []
    lost = [c for c in farm.api.clients() if c.name == victim]
    assert [c.state for c in lost] == ["offline"]

    model_file = tmp_path / "model.safetensors"
    assert farm.run("pull", task_id, "-o", str(model_file)).exit_code == 0
    weights = load_file(model_file)
    assert int(weights["1.num_batches_tracked"]) > 0
    assert bool(torch.isfinite(weights["1.running_var"]).all())
    assert not torch.equal(weights["1.running_mean"], torch.zeros(8)), "running statistics are averaged, not left"
    if mode == "weights":
        assert farm.api.task(task_id).task.metrics["accuracy"] > 0.8
