"""A hostile task on a real farm fails as what it is; an honest one beside it ends with the weights it always has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from farm_client.cli.exit_codes import ExitCode
from tests.e2e.conftest import RealFarm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]  # it waits for three tasks, one after the other

HONEST = """
import torch
def build_model(config):
    return torch.nn.Linear(3, 1)
def loss(model, batch):
    return (model(batch['x']) - 1).square().mean()
"""
HOSTILE = HONEST.replace(
    "def loss(model, batch):\n", "def loss(model, batch):\n    import ctypes; ctypes.string_at(0)\n"
)


def submitted(farm: RealFarm, folder: Path, code: str) -> str:
    folder.mkdir()
    (folder / "train.py").write_text(code)
    np.savez(folder / "data.npz", x=np.arange(48, dtype=np.float32).reshape(16, 3) / 48)
    train, data = str(folder / "train.py"), str(folder / "data.npz")
    return farm.submit(train, "--data", data, "--rounds", "2", "--seed", "1", "--no-check")


def pulled(farm: RealFarm, task_id: str, to: Path) -> dict[str, list[float]]:
    assert farm.run("wait", task_id, "--timeout", "80").exit_code == ExitCode.OK
    assert farm.run("pull", task_id, "-o", str(to)).exit_code == 0
    return {name: tensor.flatten().tolist() for name, tensor in load_file(to).items()}


def test_a_hostile_task_fails_by_its_right_name_and_changes_nothing_beside_it(shared_farm, tmp_path):
    alone = pulled(shared_farm, submitted(shared_farm, tmp_path / "alone", HONEST), tmp_path / "alone.safetensors")
    hostile = submitted(shared_farm, tmp_path / "hostile", HOSTILE)
    honest = submitted(shared_farm, tmp_path / "beside", HONEST)
    assert shared_farm.run("wait", hostile, "--timeout", "80").exit_code == ExitCode.TASK_FAILED
    assert "SIGSEGV" in shared_farm.run("logs", hostile).stdout + shared_farm.run("why", hostile).stdout
    assert pulled(shared_farm, honest, tmp_path / "beside.safetensors") == alone
    shared_farm.processes.check()
