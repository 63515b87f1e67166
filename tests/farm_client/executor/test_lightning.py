"""A LightningModule as it is, with the real package."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from farm_client.executor.failures import CodeError
from protocol.recipe import Mode
from tests.farm_client.executor.bench_task import Bench, update_of

LIT = """
    import torch
    import lightning
    from torch import nn

    class Lit(lightning.LightningModule):
        def __init__(self, hidden, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))

        def training_step(self, batch, batch_idx):
            scores = self.net(batch["x"])
            loss = nn.functional.cross_entropy(scores, batch["y"])
            self.log("train_loss", loss, prog_bar=True)
            self.log_dict({"accuracy": (scores.argmax(1) == batch["y"]).float().mean()})
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch["x"]), batch["y"]))
            self.log("val_rows", float(len(batch["y"])))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}
"""


@pytest.mark.parametrize("mode", list(Mode))
def test_a_lightning_module_trains_and_validates(tmp_path: Path, mode: Mode) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bench = Bench(tmp_path, LIT, mode=mode, config={"hidden": 4, "ignored": 1})
        done = bench.train()
        found = bench.evaluate().metrics
    assert done.metrics["train_loss"] == pytest.approx(done.metrics["loss"])
    assert 0 <= done.metrics["accuracy"] <= 1
    assert set(update_of(done)) == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert found["loss"] == found["val_loss"]
    assert found["val_rows"] == 8


def test_build_model_may_return_one(tmp_path: Path) -> None:
    source = (
        LIT
        + """
    class Other(Lit):
        pass

    def build_model(config):
        return Other(hidden=3)
    """
    )
    assert Bench(tmp_path, source).train().samples == 72


def test_without_a_validation_step_the_training_step_evaluates(tmp_path: Path) -> None:
    source = LIT.replace("def validation_step", "def unused_step")
    found = Bench(tmp_path, source, config={"hidden": 4}).evaluate().metrics
    assert found["loss"] == pytest.approx(found["train_loss"])


@pytest.mark.parametrize(
    ("source", "config", "sentence"),
    [
        (LIT, {}, "Lit needs hidden: add it to the task's config"),
        (LIT + "\n    class Second(Lit):\n        pass\n", {}, "several LightningModules"),
        (LIT.replace("return {", "return [optimizer, optimizer]\n            return {"), {"hidden": 2}, "2 optimizers"),
        (LIT.replace("return loss", "return"), {"hidden": 2}, "training_step returned None"),
        (
            LIT.replace(
                "self.save_hyperparameters()", "self.save_hyperparameters(); self.automatic_optimization = False"
            ),
            {"hidden": 2},
            "manual optimization",
        ),
    ],
)
def test_what_lightning_cannot_do_here_is_said(
    tmp_path: Path, source: str, config: dict[str, int], sentence: str
) -> None:
    with pytest.raises(CodeError, match=sentence):
        Bench(tmp_path, source, config=config).train()
