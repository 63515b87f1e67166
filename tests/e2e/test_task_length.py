"""What a module is told of its task's length, through a real farm: the trial, the server, a client, `farm continue`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from coordinator.numerics.schedule import value_at
from farm_client import Farm
from protocol.features import FEATURES
from protocol.recipe import Mode
from protocol.task_length import task_length
from protocol.tasks import Split
from tests.e2e.conftest import RealFarm

CODE = """
    import torch

    class Base(torch.nn.Module):
        __module__ = "lightning.core"  # Lightning itself takes seconds to import; tests of the executor do
        trainer = None

    class Lit(Base):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(4, 2)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

        def validation_step(self, batch, batch_idx):
            self.log("loss", self.training_step(batch, batch_idx))
            self.log("steps", float(self.trainer.estimated_stepping_batches))
            self.log("batches", float(self.trainer.num_training_batches))
            self.log("epochs", float(self.trainer.max_epochs))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.trainer.estimated_stepping_batches)
            return [optimizer], [{"scheduler": rate, "interval": "step"}]

    def make_dataset(config):
        x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        return [{"x": row, "y": (row.sum() > 0).long()} for row in x]
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_every_client_tells_the_code_the_length_that_the_farm_keeps_to(
    shared_farm: RealFarm, tmp_path: Path, mode: Mode
) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(CODE))
    recipe: dict[str, Any] = {"mode": mode, "round_samples": 40, "batch_samples": 10}
    with Farm(shared_farm.processes.farm_url) as farm:
        first = farm.submit(tmp_path / "train.py", recipe={**recipe, "rounds": 3}, holdout=0.2)
        first.wait(timeout_seconds=90)
        rest = first.continue_("+2")
        for task, rounds in ((first, 3), (rest, 5)):
            assert task.wait(timeout_seconds=90).round == rounds
            spec = shared_farm.api.spec(task.id)
            length = task_length(spec.recipe, mode, spec.dataset.samples(Split.TRAIN))
            found = task.view().metrics
            assert [found[name] for name in ("steps", "batches", "epochs")] == [*length.model_dump().values()]
            assert spec.reads_length
            assert "task_length" in spec.needs
            assert "task_length" in FEATURES
            rate = spec.recipe.outer.schedules.get("lr")
            if mode is Mode.GRADIENTS:
                assert rate is not None
                assert [value_at(rate, version) for version in range(rounds)] == pytest.approx(
                    [0.1 * (1 - version / rounds) for version in range(rounds)]
                )
