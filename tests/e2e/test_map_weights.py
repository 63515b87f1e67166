"""Batch inference with what the farm trained: `farm map --weights TASK` gives what the pulled model gives here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.mortal_farm import MortalFarm, mortal_farm
from farm_client import Farm
from tests.e2e.conftest import run_farm

TRAIN = """
import torch


def build_model(config):
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
PREDICT = """
from pathlib import Path

import torch
from safetensors.torch import load_file


def setup(config):
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model.load_state_dict(load_file(Path(config["base"]) / "model.safetensors"))
    return model.eval()


def map_batch(batch, config):
    with torch.no_grad():
        return config["setup"](batch["x"])
"""
ROWS, BATCH = 40, 8


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalFarm]:
    with mortal_farm(tmp_path_factory.mktemp("farm"), 1) as running:
        yield running


def test_predictions_with_a_trained_tasks_weights_are_those_of_its_model(farm: MortalFarm, tmp_path: Path) -> None:
    train, predict = tmp_path / "train.py", tmp_path / "predict.py"
    train.write_text(TRAIN)
    predict.write_text(PREDICT)
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=(x.sum(axis=1) > 0).astype(np.int64))
    with Farm(farm.farm_url) as program:
        task = program.submit(train, data=tmp_path / "rows.npz", recipe={"rounds": 2, "batch_samples": 10}, check=False)
        task.wait(timeout_seconds=120)
        model = load_file(task.pull(tmp_path / "model.safetensors"))
        first = load_file(task.pull(tmp_path / "first.safetensors", 1))
    out = tmp_path / "results.jsonl"
    arguments = ("--data", str(tmp_path / "rows.npz"), "--batch", str(BATCH), "--out", str(out))
    answer = run_farm("map", str(predict), "--weights", task.id, *arguments, FARM_URL=farm.farm_url)
    assert answer.exit_code == 0, answer.stderr
    found = torch.tensor([json.loads(line) for line in out.read_text().splitlines()], dtype=torch.float32)
    assert torch.equal(found, predictions(model, x))
    assert not torch.equal(predictions(model, x), predictions(first, x)), "another version's would show"


def predictions(weights: dict[str, torch.Tensor], x: np.ndarray) -> torch.Tensor:
    """Return the model's outputs, in the batches of the map: the last bit of a product may depend on its shape."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    network.load_state_dict(weights)
    with torch.no_grad():
        return torch.cat([network.eval()(batch) for batch in torch.from_numpy(x).split(BATCH)])
