"""The Python API on a real farm: submit, watch, measure, fetch, load the model; and a script with a loop of its own."""

from __future__ import annotations

import torch

from farm_client import AsyncFarm, Farm
from tests.e2e.conftest import RealFarm

CODE = """
import torch


def build_model(config):
    return torch.nn.Linear(4, 2)


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])


def make_dataset(config):
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "y": (row.sum() > 0).long()} for row in x]
"""

RECIPE = {"mode": "weights", "rounds": 3, "evaluate_every": 1}


async def test_a_program_trains_on_a_farm(shared_farm: RealFarm, tmp_path, capsys) -> None:
    (tmp_path / "train.py").write_text(CODE)
    with Farm(shared_farm.processes.farm_url) as farm:
        task = farm.submit(tmp_path / "train.py", recipe=RECIPE, holdout=0.2)
        assert task.watch().state == "completed"
        assert "completed  round 3/3" in capsys.readouterr().out
        frame = task.metrics()
        held_out = frame[(frame.source == "eval") & (frame.name == "loss")]
        assert list(held_out["round"]) == [1, 2, 3]
        model = torch.nn.Linear(4, 2)
        model.load_state_dict(task.model())
        again = torch.nn.Linear(4, 2)
        again.load_state_dict(task.model(round_number=3))
        assert torch.equal(model.weight, again.weight)
        task_id = task.id
    async with AsyncFarm(shared_farm.processes.farm_url) as farm:
        found = await farm.task(task_id)
        assert (await found.wait()).round == 3
        await found.remove()
        assert task_id not in [t.id for t in await farm.tasks()]


SCRIPT = """
import torch
import farm_client as farm

x = torch.randn(240, 4, generator=torch.Generator().manual_seed(0))
dataset = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters(), lr=farm.config(lr=0.05)["lr"])


def accuracy(model, part):
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in part.loader(dataset, batch_size=64))
    return {"accuracy": right / len(part.rows)}


for part in farm.parts(model, optimizer, evaluate=accuracy):
    for x, y in part.loader(dataset, batch_size=10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    part.done(metrics={"loss": loss})
"""


def test_a_script_with_a_loop_of_its_own_trains_on_a_farm(shared_farm: RealFarm, tmp_path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    with Farm(shared_farm.processes.farm_url) as farm:
        task = farm.submit(tmp_path / "script.py", recipe={"epochs": 8}, holdout=0.25, config={"lr": 0.1})
        task.wait(timeout_seconds=60)
        assert "the script takes its steps itself" in shared_farm.api.task(task.id).spec.notes[0]
        assert task.view().metrics["accuracy"] > 0.9
        books = shared_farm.api.shards(task.id)
        assert sum(book.counted_samples for book in books if book.epoch == 0) == 180
        assert set(task.model()) == {"weight", "bias"}
