"""The executor beside the plain loop: that both are measured, at every model of the benchmark."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.executor import MODELS, measure
from benchmarks.plain_loop import task_config, task_module


def test_the_real_executor_is_measured_beside_the_plain_loop(monkeypatch):
    monkeypatch.setattr("benchmarks.executor.TURNS", 1)
    changes = {"width": 16, "batch": 4, "rows": 32, "layers": 1}
    found = json.loads(measure("nanogpt", "cpu", 0.01, 1, changes).to_json())
    assert (found["benchmark"], found["model"], found["device"]) == ("executor", "nanogpt", "cpu")
    assert found["samples_per_s"] > 0
    assert found["ratio"] == pytest.approx(found["samples_per_s"] / found["plain_samples_per_s"], rel=1e-3)
    assert found["tokens_per_s"] == pytest.approx(64 * found["samples_per_s"], rel=1e-3)
    assert 0 < found["mfu"] < 1


@pytest.mark.parametrize("name", MODELS)
def test_each_model_learns_its_one_batch(name):
    task, config = task_module(name), {**task_config(name, "cpu"), "width": 16, "layers": 1, "vocabulary": 16}
    torch.manual_seed(0)
    model = task.build_model(config)
    optimizer = task.build_optimizer(model, config)
    shard = SimpleNamespace(index=0, samples=4, config=config)
    batch = task.load_shard(shard)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(task.loss(model, batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_the_adapters_alone_are_trained():
    model = task_module("lora").build_model({**task_config("lora", "cpu"), "layers": 1})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.endswith((".down.weight", ".up.weight")) and name.count(".") == 4 for name in trained)


def test_the_largest_shape_is_gpt_2s():
    with torch.device("meta"):
        model = task_module("nanogpt").build_model(task_config("nanogpt", "cuda"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(124e6, rel=0.01)
