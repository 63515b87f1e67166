"""Credit from the executor's batch to the signed file: real processes, and FLOPs that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import RealFarm, run_farm

CODE = """
from torch import nn


def build_model(config):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"])
"""
FORWARD = 2 * (4 * 8 + 8 * 2)
BACKWARD = FORWARD + 2 * 8 * 2
"""The gradients of all weights, and that of the second layer's input: nothing needs the first one's."""


@pytest.mark.timeout(240)
def test_what_is_computed_is_credited_and_signed(start_farm: Callable[[int], RealFarm], tmp_path: Path) -> None:
    farm = start_farm(0)
    rng = np.random.default_rng(7)
    x = rng.normal(size=(480, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=(x.sum(axis=1) > 0).astype(np.int64))
    (tmp_path / "train.py").write_text(CODE)
    task = (str(tmp_path / "train.py"), "--data", str(tmp_path / "data.npz"), "--epochs", "2")
    sizes = ("--round-samples", "240", "--batch-samples", "8")
    farm.add_volunteer("mia", FARM_CLIENT_TEAM="reds")
    task_id = farm.submit(*task, *sizes, "--mode", "weights")
    assert farm.run("wait", task_id).exit_code == 0
    trained = farm.api.task(task_id).task.samples_done
    board = farm.run("leaderboard", "--json").envelope("leaderboard")
    assert (board["samples"], board["count"]) == (trained, 1)
    assert board["flops"] == (FORWARD + BACKWARD) * trained
    reds = next(one for one in farm.api.leaderboard("team").leaders if one.key == "reds")
    mine = next(one for one in farm.api.leaderboard().leaders if one.name == "mia")
    assert (reds.samples, reds.flops) == (mine.samples, mine.flops)
    assert farm.run("rm", task_id).exit_code == 0
    file = tmp_path / "certificate.json"
    given = farm.run("certificate", "mia", "-o", str(file), "--json").envelope("certificate")
    assert given["certificate"]["flops"] == mine.flops > 0
    key = farm.api.certificate_key()
    assert run_farm("certificate", "verify", str(file), "--key", key).exit_code == 0
    file.write_bytes(file.read_bytes().replace(b'"mia"', b'"max"'))
    assert run_farm("certificate", "verify", str(file), "--key", key).exit_code == 1
