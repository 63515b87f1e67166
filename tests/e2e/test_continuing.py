"""A task that goes on from another's checkpoint is, to the bit, the task that never stopped."""

from __future__ import annotations

import pytest
import torch

from farm_client import Farm
from farm_client.sdk.farm import Task
from tests.e2e.conftest import RealFarm

CODE = """
import torch


def build_model(config):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def build_optimizer(model, config):
    return torch.optim.AdamW(model.parameters(), lr=config.get("lr", 0.05))


def build_scheduler(optimizer, config):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)


def make_dataset(config):
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "y": (row.sum() > 0).long()} for row in x]
"""
RECIPES = {
    "weights": {"mode": "weights", "inner_state": "carried", "round_samples": 40, "batch_samples": 10},
    "gradients": {"mode": "gradients", "round_samples": 40},
}


@pytest.mark.parametrize("mode", RECIPES)
def test_n_rounds_and_m_more_are_n_plus_m_to_the_bit(shared_farm: RealFarm, tmp_path, mode: str) -> None:
    (tmp_path / "train.py").write_text(CODE)
    recipe = {**RECIPES[mode], "parts": "fixed"}
    with Farm(shared_farm.processes.farm_url) as farm:
        whole = farm.submit(tmp_path / "train.py", recipe={**recipe, "rounds": 7}, name=f"whole {mode}")
        first = farm.submit(tmp_path / "train.py", recipe={**recipe, "rounds": 4}, name=f"first {mode}")
        first.wait(timeout_seconds=60)
        rest = first.continue_("+3")
        assert rest.notes == (f"continues first {mode}, {first.id}@4",)
        assert rest.wait(timeout_seconds=60).round == 7
        assert whole.wait(timeout_seconds=60).samples_done == rest.view().samples_done
        assert _bits(whole) == _bits(rest)
        shown = shared_farm.run("show", rest.id)
        assert f"{first.id}@4" in shown.stdout
        frozen = first.continue_("+1", config={"lr": 0.0})
        assert frozen.wait(timeout_seconds=60).round == 5
        assert {name: tensor.tolist() for name, tensor in frozen.model().items()} == {
            name: tensor.tolist() for name, tensor in first.model().items()
        }, "the code, or the server, got the rate that trains nothing"
        if mode == "weights":
            asked = ("continue", first.id, "--rounds", "+1", "--mode", "gradients", "--json")
            answer = shared_farm.run(*asked)
            assert answer.exit_code == 0, answer.stderr
            told = answer.envelope("submitted")
            assert "the mode was weights and is gradients" in " ".join(told["notes"])
            other = farm.task(told["task"]["task_id"])
            assert other.wait(timeout_seconds=60).round == 5
            assert shared_farm.api.spec(other.id).recipe.outer.name == "adamw"


def _bits(task: Task) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in task.model().items() if isinstance(tensor, torch.Tensor)}
