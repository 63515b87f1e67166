"""The links benchmark: its task, its shares of time, and a tiny run behind fault proxies."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import links
from benchmarks.links import CHANGES, Lines, Moment, Variant
from benchmarks.links_task import train
from benchmarks.meters import ServerCount
from protocol.recipe import Mode, Recipe


def test_every_parameter_has_changed_after_the_steps_of_a_round(monkeypatch):
    monkeypatch.setattr(train, "TENSOR_PARAMS", 40)
    model = train.build_model({"params": 100, "batch_seconds": 0.0})
    assert [part.numel() for part in model.parts] == [40, 40, 20]
    optimizer = train.build_optimizer(model, {"round_steps": 7})
    for _ in range(7):
        optimizer.zero_grad()
        train.loss(model, torch.ones(4, 1)).backward()
        optimizer.step()
    assert all((part != 0).all() for part in model.parts)
    assert 0 < model.weight.item() < 1


def test_every_variant_is_a_valid_recipe():
    for changes in CHANGES.values():
        Recipe(mode=Mode.WEIGHTS, rounds=1, outer=links.DILOCO, **changes)


def test_shares_are_of_all_clients_time():
    lines = Lines(clients=4, round_compute_s=10.0)
    assert (lines.round_steps, lines.round_samples) == (100, 1600)
    first = Moment(at=100.0, samples=1600, count=ServerCount(10, 10, 40.0, 1))
    last = Moment(at=150.0, samples=1600 * 5, count=ServerCount(410, 810, 220.0, 5))
    found = links._measured(Variant.INT8, lines, first, last)
    assert (found.rounds, found.seconds) == (4, 50.0)
    assert found.compute_share == pytest.approx(180 / 200)
    assert found.step_share == pytest.approx(160 / 200)
    assert (found.up_bytes_per_round, found.down_bytes_per_round) == (100, 200)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_farm_behind_lines_is_measured(monkeypatch):
    monkeypatch.setattr(links, "WARM_UP_ROUNDS", 1)
    monkeypatch.setattr(links, "FEWEST_ROUNDS", 0)
    lines = Lines(clients=2, params=100_000, bits_per_s=1e8, delay_s=0.01, round_compute_s=0.3)
    found = json.loads(links.measure(Variant.PIPELINE, lines, seconds=0.1).to_json())
    assert (found["benchmark"], found["variant"]) == ("links", "pipeline")
    assert found["rounds"] >= 1
    assert 0 < found["step_share"] <= found["compute_share"] < 1.5
    assert 0 < found["up_bytes_per_round"] < 4 * 2 * 100_000
